//! What a class has: its keys, its properties and their types, its methods and their parameters.
//!
//! ```text
//!   ClassSchema (as it is declared)  ──► SchemaSet::new ──► classes with all that they inherit, ancestors, subclasses
//! ```
//!
//! The server's tables are made of these; the client makes only those that it writes as embedded text, for their types.
//!
//! **Invariants.** In a [`SchemaSet`] every superclass exists and no class is its own ancestor. Properties are in the order of
//! their names, which is the order in which Windows sends them; parameters are in the order of MOF, and are sent in it.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::cim::{CimType, ClassName, Namespace};
use crate::{Error, Result};

/// How many values a property or parameter has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arity {
    /// One, or none where it is null.
    One,
    /// An array.
    Many,
}

/// Type of a property or parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValueSchema {
    /// Type of each value.
    pub cim_type: CimType,
    /// One or many.
    pub arity: Arity,
    /// For strings that hold an instance as CIM-XML, and for objects: the class, or an ancestor of it.
    pub embedded: Option<ClassName>,
}

impl ValueSchema {
    fn new(cim_type: CimType, arity: Arity) -> Self {
        Self {
            cim_type,
            arity,
            embedded: None,
        }
    }

    fn embedded(class: impl Into<ClassName>, arity: Arity) -> Self {
        Self {
            cim_type: CimType::String,
            arity,
            embedded: Some(class.into()),
        }
    }
}

/// Which way a parameter goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From caller to method.
    In,
    /// From method to caller.
    Out,
    /// Both.
    InOut,
}

/// A parameter of a method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterSchema {
    /// Its name, exactly.
    pub name: String,
    /// Which way it goes.
    pub direction: Direction,
    /// Its type.
    pub value: ValueSchema,
}

/// Whether a method belongs to an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MethodKind {
    /// Called on an instance.
    Instance,
    /// Called on the class.
    Static,
}

/// A method: its parameters in the order of MOF. [`ReturnValue`](MethodSchema::returns) stands beside them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MethodSchema {
    /// Its name, exactly.
    pub name: String,
    /// Of an instance or of the class.
    pub kind: MethodKind,
    /// In the order of MOF.
    pub parameters: Vec<ParameterSchema>,
    /// Type of what it returns; `None` for `void`, as the methods of clusters have it.
    pub returns: Option<CimType>,
}

impl MethodSchema {
    /// A method of an instance without parameters that returns `uint32`.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            kind: MethodKind::Instance,
            parameters: Vec::new(),
            returns: Some(CimType::Uint32),
        }
    }

    /// The same, but of the class.
    #[must_use]
    pub fn of_class(mut self) -> Self {
        self.kind = MethodKind::Static;
        self
    }

    /// The same, but without a value that it returns.
    #[must_use]
    pub fn without_return(mut self) -> Self {
        self.returns = None;
        self
    }

    /// The same with one parameter more, after the others.
    #[must_use]
    pub fn parameter(
        mut self,
        name: impl Into<String>,
        direction: Direction,
        value: ValueSchema,
    ) -> Self {
        self.parameters.push(ParameterSchema {
            name: name.into(),
            direction,
            value,
        });
        self
    }

    /// The same with one scalar input more.
    #[must_use]
    pub fn input(self, name: impl Into<String>, cim_type: CimType) -> Self {
        self.parameter(name, Direction::In, ValueSchema::new(cim_type, Arity::One))
    }

    /// The same with one array as input more.
    #[must_use]
    pub fn inputs(self, name: impl Into<String>, cim_type: CimType) -> Self {
        self.parameter(name, Direction::In, ValueSchema::new(cim_type, Arity::Many))
    }

    /// The same with one embedded instance as input more.
    #[must_use]
    pub fn embedded_input(self, name: impl Into<String>, class: impl Into<ClassName>) -> Self {
        self.parameter(
            name,
            Direction::In,
            ValueSchema::embedded(class, Arity::One),
        )
    }

    /// The same with one array of embedded instances as input more.
    #[must_use]
    pub fn embedded_inputs(self, name: impl Into<String>, class: impl Into<ClassName>) -> Self {
        self.parameter(
            name,
            Direction::In,
            ValueSchema::embedded(class, Arity::Many),
        )
    }

    /// The same with one scalar output more.
    #[must_use]
    pub fn output(self, name: impl Into<String>, cim_type: CimType) -> Self {
        self.parameter(name, Direction::Out, ValueSchema::new(cim_type, Arity::One))
    }

    /// The same with one array as output more.
    #[must_use]
    pub fn outputs(self, name: impl Into<String>, cim_type: CimType) -> Self {
        self.parameter(
            name,
            Direction::Out,
            ValueSchema::new(cim_type, Arity::Many),
        )
    }

    /// The parameters that a caller gives, in order.
    pub fn inputs_in_order(&self) -> impl Iterator<Item = &ParameterSchema> {
        self.parameters
            .iter()
            .filter(|it| it.direction != Direction::Out)
    }

    /// The parameters that a caller gets.
    pub fn outputs_in_order(&self) -> impl Iterator<Item = &ParameterSchema> {
        self.parameters
            .iter()
            .filter(|it| it.direction != Direction::In)
    }
}

/// A class as it is declared, or (in a [`SchemaSet`]) with all that it inherits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassSchema {
    /// Its name, as Windows spells it.
    pub name: ClassName,
    /// What it inherits from.
    pub superclass: Option<ClassName>,
    /// Names of its key properties.
    pub keys: Vec<String>,
    /// By exact name.
    pub properties: BTreeMap<String, ValueSchema>,
    /// By exact name.
    pub methods: BTreeMap<String, MethodSchema>,
}

impl ClassSchema {
    /// A class with nothing in it.
    pub fn new(name: impl Into<ClassName>) -> Self {
        Self {
            name: name.into(),
            superclass: None,
            keys: Vec::new(),
            properties: BTreeMap::new(),
            methods: BTreeMap::new(),
        }
    }

    /// The same, inheriting.
    #[must_use]
    pub fn extends(mut self, superclass: impl Into<ClassName>) -> Self {
        self.superclass = Some(superclass.into());
        self
    }

    /// The same with one property more, or with another type of it.
    #[must_use]
    pub fn value(mut self, name: impl Into<String>, value: ValueSchema) -> Self {
        self.properties.insert(name.into(), value);
        self
    }

    /// The same with one key more.
    #[must_use]
    pub fn key(mut self, name: impl Into<String>, cim_type: CimType) -> Self {
        let name = name.into();
        self.keys.push(name.clone());
        self.value(name, ValueSchema::new(cim_type, Arity::One))
    }

    /// The same with one scalar property more.
    #[must_use]
    pub fn property(self, name: impl Into<String>, cim_type: CimType) -> Self {
        self.value(name, ValueSchema::new(cim_type, Arity::One))
    }

    /// The same with one array property more.
    #[must_use]
    pub fn array(self, name: impl Into<String>, cim_type: CimType) -> Self {
        self.value(name, ValueSchema::new(cim_type, Arity::Many))
    }

    /// The same with one property more that is a string with an instance of `class` in it.
    #[must_use]
    pub fn embedded(self, name: impl Into<String>, class: impl Into<ClassName>) -> Self {
        self.value(name, ValueSchema::embedded(class, Arity::One))
    }

    /// The same with one array more of strings with an instance of `class` in each.
    #[must_use]
    pub fn embedded_array(self, name: impl Into<String>, class: impl Into<ClassName>) -> Self {
        self.value(name, ValueSchema::embedded(class, Arity::Many))
    }

    /// The same with one method more.
    #[must_use]
    pub fn method(mut self, method: MethodSchema) -> Self {
        self.methods.insert(method.name.clone(), method);
        self
    }

    /// Whether this property is a key; case does not count, as in selectors.
    pub fn is_key(&self, name: &str) -> bool {
        self.keys.iter().any(|it| it.eq_ignore_ascii_case(name))
    }

    /// A property by its name without case, as WQL has it; with its exact name.
    pub fn property_folded(&self, name: &str) -> Option<(&str, &ValueSchema)> {
        if let Some((exact, value)) = self.properties.get_key_value(name) {
            return Some((exact, value));
        }
        let mut all = self.properties.iter();
        all.find(|it| it.0.eq_ignore_ascii_case(name))
            .map(|(exact, value)| (exact.as_str(), value))
    }
}

/// The classes of one namespace, with what they inherit.
#[derive(Debug, Clone)]
pub struct SchemaSet {
    namespace: Namespace,
    classes: HashMap<ClassName, Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    schema: ClassSchema,
    ancestors: HashSet<ClassName>,
    /// Itself and all below it, by name.
    family: Vec<ClassName>,
}

impl SchemaSet {
    /// Puts classes together.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) if a name comes twice, a superclass is missing, or a class is its own ancestor.
    pub fn new(namespace: impl Into<Namespace>, declared: Vec<ClassSchema>) -> Result<Self> {
        let mut by_name: HashMap<ClassName, ClassSchema> = HashMap::new();
        for class in declared {
            let name = class.name.clone();
            if by_name.insert(name.clone(), class).is_some() {
                return Err(Error::invalid(format!("class {name} is declared twice")));
            }
        }
        let mut classes = HashMap::new();
        for name in by_name.keys() {
            classes.insert(name.clone(), flatten(name, &by_name)?);
        }
        let mut families: HashMap<ClassName, Vec<ClassName>> = HashMap::new();
        for (name, entry) in &classes {
            for ancestor in entry.ancestors.iter().chain([name]) {
                families
                    .entry(ancestor.clone())
                    .or_default()
                    .push(name.clone());
            }
        }
        for (name, mut family) in families {
            family.sort();
            if let Some(entry) = classes.get_mut(&name) {
                entry.family = family;
            }
        }
        Ok(Self {
            namespace: namespace.into(),
            classes,
        })
    }

    /// Where these classes are.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// A class with all that it inherits.
    pub fn class(&self, name: &ClassName) -> Option<&ClassSchema> {
        self.classes.get(name).map(|it| &it.schema)
    }

    /// Whether one class is the other or inherits from it.
    pub fn is_a(&self, class: &ClassName, ancestor: &ClassName) -> bool {
        class == ancestor
            || self
                .classes
                .get(class)
                .is_some_and(|it| it.ancestors.contains(ancestor))
    }

    /// A class and all that inherit from it, by name; nothing for a class that is not here.
    pub fn family(&self, class: &ClassName) -> &[ClassName] {
        self.classes.get(class).map_or(&[], |it| &it.family)
    }

    /// All classes, in no order.
    pub fn classes(&self) -> impl Iterator<Item = &ClassSchema> {
        self.classes.values().map(|it| &it.schema)
    }
}

fn flatten(name: &ClassName, declared: &HashMap<ClassName, ClassSchema>) -> Result<Entry> {
    let mut line: Vec<&ClassSchema> = Vec::new();
    let mut ancestors = HashSet::new();
    let mut next = Some(name);
    while let Some(current) = next {
        let class = declared
            .get(current)
            .ok_or_else(|| Error::invalid(format!("class {name}: no superclass {current}")))?;
        if !line.is_empty() && (current == name || !ancestors.insert(current.clone())) {
            return Err(Error::invalid(format!("class {name} is its own ancestor")));
        }
        line.push(class);
        next = class.superclass.as_ref();
    }
    let mut schema = ClassSchema::new(name.clone());
    for class in line.into_iter().rev() {
        schema.name = class.name.clone();
        schema.superclass = class.superclass.clone();
        for key in &class.keys {
            if !schema.keys.contains(key) {
                schema.keys.push(key.clone());
            }
        }
        let properties = class.properties.iter();
        schema
            .properties
            .extend(properties.map(|it| (it.0.clone(), it.1.clone())));
        let methods = class.methods.iter();
        schema
            .methods
            .extend(methods.map(|it| (it.0.clone(), it.1.clone())));
    }
    Ok(Entry {
        schema,
        ancestors,
        family: Vec::new(),
    })
}
