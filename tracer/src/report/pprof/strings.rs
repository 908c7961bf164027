//! The texts of a pprof profile.

use hashbrown::HashMap;

use super::message::{Label, ValueType};

/// The table of texts, which everything refers to by number.
pub(super) struct Strings {
    ids: HashMap<String, i64>,
    pub(super) texts: Vec<String>,
}

impl Strings {
    /// One with the empty text, which comes first.
    pub(super) fn new() -> Self {
        Self { ids: HashMap::from([(String::new(), 0)]), texts: vec![String::new()] }
    }

    pub(super) fn id(&mut self, text: &str) -> i64 {
        if let Some(id) = self.ids.get(text) {
            return *id;
        }
        let id = self.texts.len() as i64;
        self.ids.insert(text.to_owned(), id);
        self.texts.push(text.to_owned());
        id
    }

    pub(super) fn value_type(&mut self, (name, unit): (&str, &str)) -> ValueType {
        ValueType { r#type: self.id(name), unit: self.id(unit) }
    }

    pub(super) fn label(&mut self, key: &str, text: &str) -> Label {
        Label { key: self.id(key), str: self.id(text), ..Label::default() }
    }
}
