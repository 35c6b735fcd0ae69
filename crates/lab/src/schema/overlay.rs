//! What a generation has less or more than the table it is built on: `overlays.txt`.
//!
//! ```text
//!   generation 2012R2 from 2019.txt
//!   without CLASS | without CLASS.MEMBER
//!   with CLASS.PROPERTY              taken over from the newer table
//!   also 2016                        and everything that generation goes without
//! ```

use wsman::cim::ClassName;

use super::table::Table;
use crate::{Error, Result};

/// The differences of one generation.
#[derive(Debug, Clone, Default)]
pub(super) struct Overlay {
    /// The table it is built on.
    pub base: String,
    without: Vec<String>,
    with: Vec<String>,
}

impl Overlay {
    /// Reads the part of a generation.
    pub(super) fn of(text: &str, generation: &str) -> Result<Self> {
        let mut overlay = Self::default();
        let mut also = Vec::new();
        let mut is_inside = false;
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or("").trim();
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                [] => {}
                ["generation", name, "from", base] => {
                    is_inside = name.eq_ignore_ascii_case(generation);
                    if is_inside {
                        (*base).clone_into(&mut overlay.base);
                    }
                }
                ["without", name] if is_inside => overlay.without.push((*name).to_owned()),
                ["with", name] if is_inside => overlay.with.push((*name).to_owned()),
                ["also", name] if is_inside => also.push((*name).to_owned()),
                ["without" | "with" | "also", _] => {}
                _ => return Err(Error::invalid(format!("overlays.txt: {line}"))),
            }
        }
        if overlay.base.is_empty() {
            return Err(Error::invalid(format!("overlays.txt has no {generation}")));
        }
        for name in also {
            overlay.without.extend(Self::of(text, &name)?.without);
        }
        Ok(overlay)
    }

    /// Changes a table; what it names must be there.
    pub(super) fn apply(&self, table: &mut Table, newer: &Table) -> Result<()> {
        for name in &self.with {
            let (class, member) = name.split_once('.').unwrap_or((name, ""));
            let found = newer
                .namespaces
                .iter()
                .flat_map(|(_, classes)| classes)
                .find(|it| it.schema.name == ClassName::new(class))
                .and_then(|it| it.schema.properties.get(member))
                .cloned()
                .ok_or_else(|| Error::invalid(format!("overlays.txt: with {name}")))?;
            let mut classes = table.namespaces.iter_mut().flat_map(|(_, classes)| classes);
            let target = classes.find(|it| it.schema.name == ClassName::new(class));
            let target =
                target.ok_or_else(|| Error::invalid(format!("overlays.txt: with {name}")))?;
            target.schema.properties.insert(member.to_owned(), found);
        }
        // Members first: `also` may name members of a class that goes as a whole.
        let (members, classes): (Vec<&String>, Vec<&String>) =
            self.without.iter().partition(|name| name.contains('.'));
        for name in members.into_iter().chain(classes) {
            remove(table, name)?;
        }
        Ok(())
    }
}

fn remove(table: &mut Table, name: &str) -> Result<()> {
    let (class, member) = match name.split_once('.') {
        Some((class, member)) => (ClassName::new(class), Some(member)),
        None => (ClassName::new(name), None),
    };
    let mut is_found = false;
    for (_, classes) in &mut table.namespaces {
        match member {
            None => {
                let before = classes.len();
                classes.retain(|it| it.schema.name != class);
                is_found |= classes.len() != before;
            }
            Some(member) => {
                for it in classes.iter_mut().filter(|it| it.schema.name == class) {
                    is_found |= it.schema.properties.remove(member).is_some();
                    is_found |= it.schema.methods.remove(member).is_some();
                }
            }
        }
    }
    if is_found {
        Ok(())
    } else {
        Err(Error::invalid(format!(
            "overlays.txt: without {name}, which is not there"
        )))
    }
}
