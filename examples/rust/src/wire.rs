//! The lines of protocol version 1: what is written, and what is believed of what is read.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::options::Parameters;
use crate::request::Job;

pub(crate) const PROTOCOL: u64 = 1;

/// A request; encoded by the thread that writes it.
pub(crate) enum Request {
    Info,
    Ping,
    Cancel(u64),
    Embed(Arc<Job>, Range<usize>),
}

#[derive(Serialize)]
struct Line<'a> {
    id: u64,
    #[serde(flatten)]
    call: Call<'a>,
}

#[derive(Serialize)]
#[serde(tag = "method", rename_all = "snake_case")]
enum Call<'a> {
    Info,
    Ping,
    Cancel {
        target: u64,
    },
    Embed {
        encoding_format: &'static str,
        #[serde(flatten)]
        parameters: &'a Parameters,
        inputs: &'a [String],
    },
}

impl Request {
    /// Append the whole line, its newline included.
    pub(crate) fn encode(&self, id: u64, line: &mut Vec<u8>) {
        let call = match self {
            Request::Info => Call::Info,
            Request::Ping => Call::Ping,
            Request::Cancel(target) => Call::Cancel { target: *target },
            Request::Embed(job, range) => Call::Embed {
                encoding_format: "base64",
                parameters: &job.parameters,
                inputs: &job.inputs[range.clone()],
            },
        };
        serde_json::to_writer(&mut *line, &Line { id, call }).expect("strings and numbers always encode");
        line.push(b'\n');
    }
}

/// The bytes of a text inside a line: serde_json escapes quotes, backslashes and control characters, nothing else.
pub(crate) fn encoded_len(text: &str) -> usize {
    let escapes = text.bytes().map(|byte| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 1,
        0..=0x1f => 5,
        _ => 0,
    });
    text.len() + escapes.sum::<usize>() + 3 // the quotes and a comma
}

/// What every answer has.
#[derive(Deserialize)]
pub(crate) struct Envelope {
    #[serde(default)]
    id: Value,
    status: Status,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    Ok,
    Error,
}

impl Envelope {
    /// The id, if it can be one of ours.
    pub(crate) fn id(&self) -> Option<u64> {
        self.id.as_u64()
    }

    pub(crate) fn is_ok(&self) -> bool {
        matches!(self.status, Status::Ok)
    }
}

/// An error answer.
#[derive(Deserialize)]
pub(crate) struct Failure {
    pub code: String,
    #[serde(default)]
    pub message: String,
    #[serde(default)]
    pub retryable: bool,
    pub index: Option<usize>,
}

#[derive(Deserialize)]
pub(crate) struct Pong {
    pub micro_batches: u64,
}

/// What a ready worker says of itself and its model.
#[derive(Debug, Clone, Deserialize)]
pub struct Info {
    /// The protocol's version: 1.
    pub protocol: u64,
    /// The worker's process.
    pub pid: u32,
    /// The model's name.
    pub model: String,
    /// Names the vector space: vectors of two fingerprints must not be mixed.
    pub fingerprint: String,
    /// The length of a vector.
    pub dimension: usize,
    /// Longer texts are truncated.
    pub max_tokens: Option<u64>,
    /// Prefixes that [`Parameters::prompt_name`] can name.
    #[serde(default)]
    pub prompts: BTreeMap<String, String>,
    /// What a host must stay within; the bridge does.
    #[serde(default)]
    pub limits: Limits,
}

impl Info {
    /// Read the answer to the handshake; the error says in one clause why the worker cannot be used.
    pub(crate) fn parse(line: &[u8]) -> Result<Info, String> {
        #[derive(Deserialize)]
        struct Version {
            protocol: Value,
        }
        let version: Version = serde_json::from_slice(line).map_err(|error| format!("its `info`: {error}"))?;
        if version.protocol != PROTOCOL {
            return Err(format!("it speaks protocol {}, this client {PROTOCOL}", version.protocol));
        }
        let info: Info = serde_json::from_slice(line).map_err(|error| format!("its `info`: {error}"))?;
        if info.dimension == 0 || info.fingerprint.is_empty() {
            return Err("its `info` names no dimension or no fingerprint".into());
        }
        Ok(info)
    }

    /// What must not change when a worker is restarted.
    pub(crate) fn identity(&self) -> (&str, &str, usize) {
        (&self.model, &self.fingerprint, self.dimension)
    }
}

/// What the worker accepts.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the protocol's own names")]
pub struct Limits {
    pub max_line_bytes: usize,
    pub max_inputs: usize,
    pub max_text_bytes: usize,
    pub max_in_flight: usize,
    pub max_in_flight_bytes: usize,
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

/// The checked vectors of one piece.
pub(crate) struct Vectors {
    pub values: Vec<f32>, // row-major
    pub tokens: Vec<u32>,
    pub truncated: Vec<usize>,
}

impl Vectors {
    /// Check an answer against what was asked for and decode it; the error says in one clause what does not fit.
    pub(crate) fn parse(line: &[u8], count: usize, dimension: usize, fingerprint: &str) -> Result<Vectors, String> {
        #[derive(Deserialize)]
        struct Answer<'a> {
            count: usize,
            dimension: usize,
            #[serde(borrow)]
            fingerprint: Cow<'a, str>,
            #[serde(borrow)]
            embeddings_base64: Cow<'a, str>,
            tokens: Vec<u32>,
            truncated: Vec<usize>,
        }
        let answer: Answer = serde_json::from_slice(line).map_err(|error| error.to_string())?;
        let ensure = |holds: bool, what: &str| if holds { Ok(()) } else { Err(what.to_string()) };
        ensure(answer.count == count, "`count` is not the number of inputs")?;
        ensure(answer.dimension == dimension, "`dimension` is not what was asked for")?;
        ensure(answer.fingerprint == fingerprint, "the fingerprint is not the one of `info`")?;
        ensure(answer.tokens.len() == count, "`tokens` are not one number for each input")?;
        ensure(answer.truncated.iter().all(|&index| index < count), "`truncated` are not indexes of inputs")?;
        let bytes = STANDARD.decode(&*answer.embeddings_base64).map_err(|error| format!("base64: {error}"))?;
        ensure(bytes.len() == count * dimension * 4, "the matrix has another size than told")?;
        let values: Vec<f32> = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        ensure(values.iter().all(|value| value.is_finite()), "a vector is not finite")?;
        Ok(Vectors { values, tokens: answer.tokens, truncated: answer.truncated })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_a_text_in_a_line_is_known_before_it_is_encoded() {
        for code in (0..0x300).chain([0x2028, 0xfeff, 0x1f600]) {
            let text = char::from_u32(code).map(String::from).unwrap_or_default();
            assert_eq!(encoded_len(&text), serde_json::to_string(&text).expect("a string").len() + 1, "U+{code:04X}");
        }
    }

    #[test]
    fn requests_are_one_line_of_what_the_page_names() {
        let parameters = Parameters { prompt_name: Some("query".into()), ..Parameters::default() };
        let job = Job::new(vec!["a".into(), "b\n".into()], parameters, Default::default());
        let mut lines = Vec::new();
        for (id, request) in
            (1..).zip([Request::Info, Request::Ping, Request::Cancel(7), Request::Embed(Arc::clone(&job), 1..2)])
        {
            request.encode(id, &mut lines);
        }
        let expected = r#"{"id":1,"method":"info"}
{"id":2,"method":"ping"}
{"id":3,"method":"cancel","target":7}
{"id":4,"method":"embed","encoding_format":"base64","prompt_name":"query","inputs":["b\n"]}
"#;
        assert_eq!(String::from_utf8_lossy(&lines), expected);
    }
}
