//! What a worker says of itself before it is used.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::policy::MAX_DIMENSION;

pub(crate) const PROTOCOL: u64 = 1;

/// What a ready worker says of itself and one of its models.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Info {
    /// The protocol's version: 1.
    pub protocol: u64,
    /// The worker's process, as the worker knows it.
    pub pid: Option<u32>,
    /// The worker's version.
    pub version: Option<String>,
    /// The model's name.
    pub model: String,
    /// Names the vector space: vectors of two fingerprints must not be mixed.
    pub fingerprint: String,
    /// The length of a vector.
    pub dimension: usize,
    /// Longer texts are truncated.
    pub max_tokens: Option<u64>,
    /// Prefixes that [`Parameters::prompt_name`](crate::Parameters::prompt_name) can name.
    pub prompts: BTreeMap<String, String>,
    /// What a host must stay within; the bridge does.
    pub limits: Limits,
}

impl Info {
    /// Read an answer to `info`, which the line is; the error says in one clause why the worker cannot be used.
    ///
    /// What is needed must be there. What only serves people is left out where it is of another type.
    pub(crate) fn parse(line: &[u8]) -> Result<Info, String> {
        let mut told: Map<String, Value> =
            serde_json::from_slice(line).map_err(|error| format!("its `info`: {error}"))?;
        let protocol = told.remove("protocol").unwrap_or_default();
        if protocol.as_u64() != Some(PROTOCOL) {
            let told: String = protocol.to_string().chars().take(40).collect();
            return Err(format!("it speaks protocol {told}, this client {PROTOCOL}"));
        }
        let mut name = |member: &str| {
            let name: Option<String> = take(&mut told, member);
            name.filter(|name| !name.is_empty()).ok_or_else(|| format!("its `info` names no {member}"))
        };
        let (model, fingerprint) = (name("model")?, name("fingerprint")?);
        let dimension = take(&mut told, "dimension").filter(|dimension| (1..=MAX_DIMENSION).contains(dimension));
        Ok(Info {
            protocol: PROTOCOL,
            pid: take(&mut told, "pid"),
            version: take(&mut told, "version"),
            model,
            fingerprint,
            dimension: dimension.ok_or("its `info` names no dimension")?,
            max_tokens: take(&mut told, "max_tokens"),
            prompts: prompts(take(&mut told, "prompts").unwrap_or_default()),
            limits: Limits::read(take(&mut told, "limits").unwrap_or_default()),
        })
    }

    /// Return what must not change when a worker is restarted.
    pub(crate) fn identity(&self) -> (&str, &str, usize) {
        (&self.model, &self.fingerprint, self.dimension)
    }

    /// Return the first of some prompts that the model has and that is not empty.
    pub(crate) fn first_prompt(&self, names: &[&'static str]) -> Option<&'static str> {
        let is_there = |name: &&&str| self.prompts.get(**name).is_some_and(|prompt| !prompt.is_empty());
        names.iter().find(is_there).copied()
    }
}

fn take<T: DeserializeOwned>(told: &mut Map<String, Value>, member: &str) -> Option<T> {
    serde_json::from_value(told.remove(member)?).ok()
}

fn prompts(told: Map<String, Value>) -> BTreeMap<String, String> {
    told.into_iter().filter_map(|(name, prompt)| Some((name, prompt.as_str()?.to_owned()))).collect()
}

/// What the worker accepts.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
#[allow(missing_docs)] // the protocol's own names
pub struct Limits {
    pub max_line_bytes: usize,
    pub max_inputs: usize,
    pub max_text_bytes: usize,
    pub max_in_flight: usize,
    pub max_in_flight_bytes: usize,
}

impl Limits {
    /// Take what is a limit, and the protocol's default for the rest.
    fn read(mut told: Map<String, Value>) -> Limits {
        let mut limit =
            |name: &str, default: usize| take(&mut told, name).filter(|&limit| limit > 0).unwrap_or(default);
        let default = Limits::default();
        Limits {
            max_line_bytes: limit("max_line_bytes", default.max_line_bytes),
            max_inputs: limit("max_inputs", default.max_inputs),
            max_text_bytes: limit("max_text_bytes", default.max_text_bytes),
            max_in_flight: limit("max_in_flight", default.max_in_flight),
            max_in_flight_bytes: limit("max_in_flight_bytes", default.max_in_flight_bytes),
        }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_line_bytes: 32 << 20,
            max_inputs: 16_384,
            max_text_bytes: 1 << 20,
            max_in_flight: 1024,
            max_in_flight_bytes: 64 << 20,
        }
    }
}
