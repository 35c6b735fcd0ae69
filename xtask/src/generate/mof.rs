//! Types out of the MOF that Microsoft's documentation shows on each class's and method's page.
//!
//! ```text
//!   class Msvm_X : CIM_Base            uint32 CreateSnapshot(
//!   {                                    [in]  CIM_ComputerSystem REF AffectedSystem,
//!     datetime InstallDate;              [out] CIM_ConcreteJob    REF Job
//!     uint16   OperationalStatus[];    );
//!   };
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};

/// What the pages of one folder say.
#[derive(Debug, Default)]
pub(super) struct Documentation {
    /// Class in lower case → property in lower case → type. Inherited properties are in the pages, too.
    properties: BTreeMap<String, BTreeMap<String, MofType>>,
    /// `class.method` → parameter → type, all in lower case.
    parameters: BTreeMap<String, BTreeMap<String, MofType>>,
    /// Class in lower case → name of its page.
    pages: BTreeMap<String, String>,
}

/// A type as written in MOF, without the brackets of an array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MofType {
    /// In lower case for simple types.
    pub name: String,
    /// Whether `REF` stands behind it.
    pub is_reference: bool,
}

impl Documentation {
    /// Reads every page of a folder.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let mut documentation = Self::default();
        let mut paths = Vec::new();
        let entries =
            std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
        for entry in entries {
            paths.push(entry?.path());
        }
        paths.sort();
        for path in paths {
            let name = path.file_name().and_then(|name| name.to_str());
            let Some(name) = name.filter(|name| name.ends_with(".md")) else {
                continue;
            };
            let bytes = std::fs::read(&path).with_context(|| format!("read {name}"))?;
            documentation.page(name, &String::from_utf8_lossy(&bytes));
        }
        Ok(documentation)
    }

    /// The type of a property on a class's own page.
    pub(super) fn property(&self, class: &str, property: &str) -> Option<&MofType> {
        self.properties
            .get(&class.to_ascii_lowercase())?
            .get(&property.to_ascii_lowercase())
    }

    /// The type of a method's parameter.
    pub(super) fn parameter(&self, class: &str, method: &str, name: &str) -> Option<&MofType> {
        let key = format!("{class}.{method}").to_ascii_lowercase();
        self.parameters.get(&key)?.get(&name.to_ascii_lowercase())
    }

    /// The page about a class.
    pub(super) fn page_of(&self, class: &str) -> Option<&str> {
        self.pages
            .get(&class.to_ascii_lowercase())
            .map(String::as_str)
    }

    fn page(&mut self, name: &str, text: &str) {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let class_line = lines
            .iter()
            .position(|line| line.starts_with("class ") && !line.ends_with('.'));
        if let Some(at) = class_line {
            let class = lines[at].trim_start_matches("class ");
            let class = class.split([' ', ':']).next().unwrap_or("");
            let class = class.to_ascii_lowercase();
            let mut properties = BTreeMap::new();
            for line in lines
                .iter()
                .skip(at)
                .take_while(|line| !line.starts_with("};"))
            {
                if let Some((property, found)) = declaration(line.trim_end_matches(';')) {
                    properties.insert(property, found);
                }
            }
            self.pages.insert(class.clone(), name.to_owned());
            self.properties.insert(class, properties);
            return;
        }
        let Some((class, method)) = title(&lines) else {
            return;
        };
        let opening = format!("{method}(").to_ascii_lowercase();
        let Some(at) = lines.iter().position(|line| {
            let line = line.to_ascii_lowercase();
            line.split_whitespace().nth(1) == Some(opening.as_str())
        }) else {
            return;
        };
        let mut parameters = BTreeMap::new();
        for line in lines.iter().skip(at.saturating_add(1)) {
            if line.starts_with(");") {
                break;
            }
            let declared = line.split(']').skip(1).collect::<Vec<_>>().join("]");
            if let Some((name, found)) = declaration(declared.trim().trim_end_matches(',')) {
                parameters.insert(name, found);
            }
        }
        let key = format!("{class}.{method}").to_ascii_lowercase();
        self.parameters.insert(key, parameters);
    }
}

/// `datetime InstallDate`, `CIM_X REF Names[]`, `uint16 State = 2` → name in lower case, type.
fn declaration(line: &str) -> Option<(String, MofType)> {
    let line = line.split('=').next()?.trim();
    let words: Vec<&str> = line.split_whitespace().collect();
    let (type_name, is_reference, name) = match words.as_slice() {
        [type_name, name] => (*type_name, false, *name),
        [type_name, mark, name] if mark.eq_ignore_ascii_case("REF") => (*type_name, true, *name),
        _ => return None,
    };
    let name = name.trim_end_matches("[]");
    let is_name = |text: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    if !is_name(name) || !is_name(type_name) || type_name == "class" {
        return None;
    }
    let name_of_type = if type_name.contains('_') {
        type_name.to_owned()
    } else {
        type_name.to_ascii_lowercase()
    };
    let found = MofType {
        name: name_of_type,
        is_reference,
    };
    Some((name.to_ascii_lowercase(), found))
}

/// `title: X method of the Msvm_Y class (…)` → class and method.
fn title(lines: &[&str]) -> Option<(String, String)> {
    let title = lines.iter().find(|line| line.starts_with("title:"))?;
    let title = title
        .trim_start_matches("title:")
        .trim()
        .trim_matches(['"', '\'']);
    let title = title.replace('\\', "");
    let (method, rest) = title.split_once(" method of the ")?;
    let class = rest.split(' ').next()?;
    let method = method.rsplit('.').next()?;
    Some((class.to_owned(), method.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_of_a_class_and_of_a_method_are_read() {
        let mut documentation = Documentation::default();
        documentation.page(
            "msvm-x.md",
            "---\ntitle: Msvm_X class\n---\n``` syntax\nclass Msvm_X : CIM_Y\n{\n  datetime When;\n  uint16   State[];\n  \
             CIM_Z REF Other;\n  uint16 Health = 5;\n};\n```\n",
        );
        documentation.page(
            "do-msvm-x.md",
            "---\ntitle: Do method of the Msvm\\_X class (A.h)\n---\n```mof\nuint32 Do(\n  [in]      CIM_Z REF Target,\n  \
             [in, out] datetime Period\n);\n```\n",
        );
        let when = documentation.property("Msvm_X", "When").expect("When");
        assert_eq!(when.name, "datetime");
        assert!(
            documentation
                .property("msvm_x", "other")
                .is_some_and(|found| found.is_reference)
        );
        assert_eq!(
            documentation
                .property("msvm_x", "Health")
                .map(|found| found.name.as_str()),
            Some("uint16")
        );
        let target = documentation
            .parameter("Msvm_X", "Do", "Target")
            .expect("Target");
        assert!(target.is_reference);
        let period = documentation
            .parameter("Msvm_X", "Do", "Period")
            .expect("Period");
        assert_eq!(period.name, "datetime");
        assert_eq!(documentation.page_of("Msvm_X"), Some("msvm-x.md"));
    }
}
