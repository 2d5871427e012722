//! The fields of a `config.json`, by name.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The fields of an object. A message about one names it.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a>(pub &'a Map<String, Value>);

impl<'a> Fields<'a> {
    pub fn has(self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// A value that may be null; none if the field is missing.
    pub fn given<T: DeserializeOwned>(self, key: &str) -> Result<Option<Option<T>>, String> {
        let value = self.0.get(key).map(Option::<T>::deserialize);
        value.transpose().map_err(|error| format!("{key}: {error}"))
    }

    /// A value; none if the field is missing or null.
    pub fn get<T: DeserializeOwned>(self, key: &str) -> Result<Option<T>, String> {
        self.given(key).map(Option::flatten)
    }

    /// A value; this one if the field is missing or null.
    pub fn get_or<T: DeserializeOwned>(self, key: &str, default: T) -> Result<T, String> {
        Ok(self.get(key)?.unwrap_or(default))
    }

    /// A value that must be there.
    pub fn need<T: DeserializeOwned>(self, key: &str) -> Result<T, String> {
        self.get(key)?.ok_or_else(|| format!("there is no {key}"))
    }

    /// A flag that is false if it is missing.
    pub fn flag(self, key: &str) -> Result<bool, String> {
        self.get_or(key, false)
    }

    /// The id of a token, if there is one.
    pub fn token(self, key: &str, default: Option<i64>) -> Result<Option<u32>, String> {
        let given = self.given::<TokenId>(key)?;
        let id = given.unwrap_or(default.map(TokenId));
        Ok(id.and_then(TokenId::known))
    }

    /// An object that is not empty.
    pub fn object(self, key: &str) -> Result<Option<Fields<'a>>, String> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(Fields(fields)).filter(|_| !fields.is_empty())),
            Some(other) => Err(format!("{key}: {other} is no object")),
        }
    }
}

/// The id of a token; -1 in some files, for none.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct TokenId(pub i64);

impl TokenId {
    pub fn known(self) -> Option<u32> {
        u32::try_from(self.0).ok()
    }
}

/// One token or several.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected the id of a token or a list of them")]
pub enum OneOrMany {
    One(TokenId),
    Many(Vec<TokenId>),
}

impl OneOrMany {
    pub fn into_vec(self) -> Vec<u32> {
        let ids = match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        };
        ids.into_iter().filter_map(TokenId::known).collect()
    }
}

/// How a file names the tokens that end a text; none if there are none.
pub fn ends_to_json(ids: &[u32]) -> Option<Value> {
    match ids {
        [] => None,
        [id] => Some((*id).into()),
        ids => Some(ids.into()),
    }
}
