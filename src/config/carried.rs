//! The configuration in force, as the next life of a daemon gets it, whatever the files say by then.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Config, Policy, Source};

#[derive(Serialize, Deserialize)]
struct Carried {
    config: Config,
    sources: BTreeMap<String, Source>,
}

impl Config {
    /// Returns the configuration with the places of its values as text, from which
    /// [`Config::carried`] makes the same.
    ///
    /// # Errors
    /// It has a path that is not UTF-8, or another value that would not come out the same.
    pub fn carry(&self) -> Result<String, String> {
        let carried = Carried {
            config: self.clone(),
            sources: self.sources.clone(),
        };
        let mut value = serde_json::to_value(&carried).map_err(|error| error.to_string())?;
        without_nulls(&mut value);
        let text = value.to_string();
        if Self::carried(&text)? != *self {
            return Err("it would not be the same".to_owned());
        }
        Ok(text)
    }

    /// Returns the configuration that [`Config::carry`] was called for.
    ///
    /// # Errors
    /// The text is of another version of evloopd.
    pub fn carried(text: &str) -> Result<Self, String> {
        let carried: Carried = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let mut config = carried.config;
        for (name, policy) in &mut config.policies {
            policy.name.clone_from(name);
        }
        config.sources = carried.sources;
        Ok(config)
    }

    /// Returns the keys whose values differ from those of another configuration, in order.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let values = |config: &Self| -> BTreeMap<String, String> {
            let effective = config.effective().into_iter();
            effective.map(|(key, value, _)| (key, value)).collect()
        };
        let (own, other) = (values(self), values(other));
        let keys: std::collections::BTreeSet<&String> = own.keys().chain(other.keys()).collect();
        let differs = |key: &&&String| own.get(**key) != other.get(**key);
        keys.iter()
            .filter(differs)
            .map(|key| (*key).clone())
            .collect()
    }
}

impl Policy {
    /// Returns the policy as text, from which [`Policy::carried`] makes the same.
    ///
    /// # Errors
    /// A value that would not come out the same.
    pub fn carry(&self) -> Result<String, String> {
        let mut value = serde_json::to_value(self).map_err(|error| error.to_string())?;
        without_nulls(&mut value);
        let text = value.to_string();
        if Self::carried(&self.name, &text)? != *self {
            return Err("it would not be the same".to_owned());
        }
        Ok(text)
    }

    /// Returns the policy of that name for which [`Policy::carry`] was called.
    ///
    /// # Errors
    /// The text is of another version of evloopd.
    pub fn carried(name: &str, text: &str) -> Result<Self, String> {
        let mut policy: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        name.clone_into(&mut policy.name);
        Ok(policy)
    }
}

/// Removes the keys without a value. TOML has no word for that, so that a key has none by being absent.
fn without_nulls(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(without_nulls);
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(without_nulls),
        _ => {}
    }
}
