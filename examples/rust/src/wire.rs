//! The lines of protocol version 1: what is written, and what is believed of what is read.

use std::ops::Range;
use std::str;
use std::sync::Arc;

use base64::engine::general_purpose::STANDARD;
use base64::Engine as _;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::error::{Error, ErrorCode};
use crate::info::Info;
use crate::parameters::Precision;
use crate::text_call::{Promised, TextCall};

/// A request; encoded by the thread that writes it.
pub(crate) enum Request {
    Info { model: Option<String> },
    LoadModel { model: String },
    Ping,
    Cancel { target: u64 },
    Texts { call: Arc<TextCall>, range: Range<usize>, role_prompt: Option<RolePrompt> },
}

/// What a model's prompts make of a role: the name of one, or none at all, also where the folder has a default.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RolePrompt {
    Named(&'static str),
    Nothing,
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
    Info {
        #[serde(skip_serializing_if = "Option::is_none")]
        model: Option<&'a str>,
    },
    LoadModel {
        model: &'a str,
    },
    Ping,
    Cancel {
        target: u64,
    },
    Embed {
        encoding_format: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        model: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        normalize: Option<bool>,
        #[serde(skip_serializing_if = "Option::is_none")]
        dimensions: Option<usize>,
        #[serde(skip_serializing_if = "Option::is_none")]
        prompt_name: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        prompt: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        truncate: Option<bool>,
        inputs: &'a [String],
    },
    Tokenize {
        #[serde(skip_serializing_if = "Option::is_none")]
        model: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        prompt_name: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        prompt: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        truncate: Option<bool>,
        offsets: bool,
        inputs: &'a [String],
    },
}

impl Request {
    /// Append the whole line, its newline included.
    pub(crate) fn encode(&self, id: u64, line: &mut Vec<u8>) {
        let call = match self {
            Request::Info { model } => Call::Info { model: model.as_deref() },
            Request::LoadModel { model } => Call::LoadModel { model },
            Request::Ping => Call::Ping,
            Request::Cancel { target } => Call::Cancel { target: *target },
            Request::Texts { call, range, role_prompt } => {
                let parameters = &call.parameters;
                let (of_role, without) = match role_prompt {
                    Some(RolePrompt::Named(name)) => (Some(*name), None),
                    Some(RolePrompt::Nothing) => (None, Some("")),
                    None => (None, None),
                };
                let (model, truncate) = (parameters.model.as_deref(), parameters.truncate);
                let prompt_name = parameters.prompt_name.as_deref().or(of_role);
                let prompt = parameters.prompt.as_deref().or(without);
                let inputs = &call.inputs[range.clone()];
                match call.promised {
                    Promised::Vectors(_) => Call::Embed {
                        encoding_format: parameters.precision.format(),
                        model,
                        normalize: parameters.normalize,
                        dimensions: parameters.dimensions,
                        prompt_name,
                        prompt,
                        truncate,
                        inputs,
                    },
                    Promised::Tokens(_) => {
                        Call::Tokenize { model, prompt_name, prompt, truncate, offsets: parameters.offsets, inputs }
                    }
                }
            }
        };
        serde_json::to_writer(&mut *line, &Line { id, call }).expect("strings and numbers always encode");
        line.push(b'\n');
    }
}

/// The bytes of a text inside a line: `serde_json` escapes quotes, backslashes and control characters, nothing else.
pub(crate) fn encoded_len(text: &str) -> usize {
    let escapes = text.bytes().map(|byte| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 1,
        0..=0x1f => 5,
        _ => 0,
    });
    text.len() + escapes.sum::<usize>() + 3 // the quotes and a comma
}

const HALF_EXPONENT: u16 = 0x7c00; // all ones for what is not finite

type Member<'a> = Option<&'a RawValue>;

/// An answer, split into the members that any answer may have. Each is read when it is known what was asked for: so a
/// large answer is parsed once, and a member that means nothing there may be anything.
#[derive(Deserialize)]
pub(crate) struct Answer<'a> {
    #[serde(skip)]
    is_ok: bool,
    #[serde(borrow)]
    id: Member<'a>,
    #[serde(borrow)]
    status: Member<'a>,
    #[serde(borrow)]
    code: Member<'a>,
    #[serde(borrow)]
    message: Member<'a>,
    #[serde(borrow)]
    retryable: Member<'a>,
    #[serde(borrow)]
    index: Member<'a>,
    #[serde(borrow)]
    micro_batches: Member<'a>,
    #[serde(borrow)]
    count: Member<'a>,
    #[serde(borrow)]
    dimension: Member<'a>,
    #[serde(borrow)]
    model: Member<'a>,
    #[serde(borrow)]
    fingerprint: Member<'a>,
    #[serde(borrow)]
    embeddings_base64: Member<'a>,
    #[serde(borrow)]
    tokens: Member<'a>,
    #[serde(borrow)]
    truncated: Member<'a>,
    #[serde(borrow)]
    offsets: Member<'a>,
}

fn read<'a, T: Deserialize<'a>>(name: &str, member: Member<'a>) -> Result<T, String> {
    let member = member.ok_or_else(|| format!("there is no `{name}`"))?;
    serde_json::from_str(member.get()).map_err(|_| format!("`{name}` is of another type"))
}

fn ensure(holds: bool, what: &str) -> Result<(), String> {
    if holds {
        Ok(())
    } else {
        Err(what.into())
    }
}

impl<'a> Answer<'a> {
    /// Split a line; the error says in one clause why it is no answer.
    pub(crate) fn parse(line: &'a [u8]) -> Result<Answer<'a>, String> {
        // The whole line: serde_json looks only at the strings that it hands out.
        let line = str::from_utf8(line).map_err(|error| error.to_string())?;
        let answer: Answer<'_> = serde_json::from_str(line).map_err(|error| error.to_string())?;
        let status: String = read("status", answer.status)?;
        ensure(status == "ok" || status == "error", "`status` is neither ok nor error")?;
        Ok(Answer { is_ok: status == "ok", ..answer })
    }

    /// Return the id, if it can be one of ours.
    pub(crate) fn id(&self) -> Option<u64> {
        self.id.and_then(|id| id.get().parse().ok())
    }

    pub(crate) fn is_ok(&self) -> bool {
        self.is_ok
    }

    /// Return what a pong tells of progress.
    pub(crate) fn micro_batches(&self) -> Option<u64> {
        read("micro_batches", self.micro_batches).ok()
    }

    /// Read an error answer to a request of so many inputs.
    pub(crate) fn failure(&self, inputs: usize) -> Result<Failure, String> {
        let code: String = read("code", self.code)?;
        let index = self.index.map(|_| read("index", self.index)).transpose()?;
        ensure(index.map_or(true, |index: usize| index < inputs), "`index` is no input's")?;
        Ok(Failure {
            code: code.as_str().into(),
            message: read("message", self.message)?,
            retryable: read("retryable", self.retryable)?,
            index,
        })
    }

    /// Check an answer against what was asked for and decode it; the error says in one clause what does not fit.
    pub(crate) fn part(&self, call: &TextCall, range: Range<usize>, info: &Info) -> Result<Part, String> {
        let (parameters, count) = (&call.parameters, range.len());
        let mut part = self.counts(count, info)?;
        match call.promised {
            Promised::Vectors(_) => {
                let dimension = parameters.dimensions.unwrap_or(info.dimension);
                self.vectors(count, dimension, parameters.precision, &mut part)?;
            }
            Promised::Tokens(_) if parameters.offsets => part.offsets = self.offsets(&call.inputs[range])?,
            Promised::Tokens(_) => {}
        }
        Ok(part)
    }

    fn counts(&self, count: usize, info: &Info) -> Result<Part, String> {
        let told_count: usize = read("count", self.count)?;
        let (model, fingerprint): (String, String) =
            (read("model", self.model)?, read("fingerprint", self.fingerprint)?);
        let tokens: Vec<u32> = read("tokens", self.tokens)?;
        let truncated: Vec<usize> = read("truncated", self.truncated)?;
        ensure(told_count == count, "`count` is not the number of inputs")?;
        ensure(model == info.model, "`model` is not the one of `info`")?;
        ensure(fingerprint == info.fingerprint, "the fingerprint is not the one of `info`")?;
        ensure(tokens.len() == count, "`tokens` are not one number for each input")?;
        ensure(truncated.iter().all(|&index| index < count), "`truncated` are not indexes of inputs")?;
        Ok(Part { tokens, truncated, ..Part::default() })
    }

    fn vectors(&self, count: usize, dimension: usize, precision: Precision, part: &mut Part) -> Result<(), String> {
        let told_dimension: usize = read("dimension", self.dimension)?;
        ensure(told_dimension == dimension, "`dimension` is not what was asked for")?;
        let number_bytes = match precision {
            Precision::Float32 => 4,
            Precision::Float16 => 2,
            Precision::Ubinary => 1,
        };
        let numbers = count.checked_mul(precision.row_length(dimension));
        let bytes = self.matrix()?;
        let is_whole = Some(bytes.len()) == numbers.and_then(|numbers| numbers.checked_mul(number_bytes));
        ensure(is_whole, "the matrix has another size than told")?;
        let is_finite = match precision {
            Precision::Float32 => {
                let number = |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                part.vectors = bytes.chunks_exact(4).map(number).collect();
                part.vectors.iter().all(|value| value.is_finite())
            }
            Precision::Float16 => {
                part.float16 = bytes.chunks_exact(2).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]])).collect();
                part.float16.iter().all(|bits| bits & HALF_EXPONENT != HALF_EXPONENT)
            }
            Precision::Ubinary => {
                part.ubinary = bytes;
                true
            }
        };
        ensure(is_finite, "a vector is not finite")
    }

    fn offsets(&self, inputs: &[String]) -> Result<Vec<Vec<Range<usize>>>, String> {
        let told: Vec<Vec<(usize, usize)>> = read("offsets", self.offsets)?;
        ensure(told.len() == inputs.len(), "`offsets` are not one list for each input")?;
        let are_inside = told.iter().zip(inputs).all(|(ranges, text)| {
            let length = text.chars().count();
            ranges.iter().all(|(start, end)| start <= end && *end <= length)
        });
        ensure(are_inside, "`offsets` are not ranges of the inputs")?;
        Ok(told.into_iter().map(|ranges| ranges.into_iter().map(|(start, end)| start..end).collect()).collect())
    }

    fn matrix(&self) -> Result<Vec<u8>, String> {
        let member = self.embeddings_base64.ok_or("there are no vectors")?.get();
        let decoded = match member.strip_prefix('"').and_then(|member| member.strip_suffix('"')) {
            Some(text) if !text.contains('\\') => STANDARD.decode(text),
            _ => STANDARD.decode(read::<String>("embeddings_base64", self.embeddings_base64)?),
        };
        decoded.map_err(|error| format!("base64: {error}"))
    }
}

/// An error answer.
pub(crate) struct Failure {
    pub code: ErrorCode,
    pub message: String,
    pub retryable: bool,
    pub index: Option<usize>,
}

impl Failure {
    /// Return the host's error; `first` is the call's input that the request began with.
    pub(crate) fn into_error(self, first: usize) -> Error {
        let Failure { code, message, retryable, index } = self;
        Error::Request { code, message, retryable, index: index.map(|index| first + index) }
    }
}

/// A checked answer about one chunk. Of what it may hold, what was not asked for is empty.
#[derive(Default)]
pub(crate) struct Part {
    pub vectors: Vec<f32>, // row-major, as the next two
    pub float16: Vec<u16>,
    pub ubinary: Vec<u8>,
    pub tokens: Vec<u32>,
    pub truncated: Vec<usize>,
    pub offsets: Vec<Vec<Range<usize>>>,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::parameters::Parameters;
    use crate::promise::Promise;

    #[test]
    fn the_length_of_a_text_in_a_line_is_known_before_it_is_encoded() {
        for code in (0..0x300).chain([0x2028, 0xfeff, 0x1f600]) {
            let text = char::from_u32(code).map(String::from).unwrap_or_default();
            assert_eq!(encoded_len(&text), serde_json::to_string(&text).expect("a string").len() + 1, "U+{code:04X}");
        }
    }

    #[test]
    fn a_size_that_wraps_around_to_nothing_is_no_size() {
        let info = br#"{"protocol": 1, "model": "m", "fingerprint": "f", "dimension": 8}"#;
        let info = Info::parse(info).expect("an `info`");
        for (dimension, base64) in [(1 << 62, ""), ((1 << 61) + 1, "AAAAAAAAAAAAAAAAAAAAAA==")] {
            let line = format!(
                r#"{{"id":1,"status":"ok","model":"m","fingerprint":"f","count":4,"dimension":{dimension},
                    "tokens":[1,1,1,1],"truncated":[],"embeddings_base64":"{base64}"}}"#
            );
            let answer = Answer::parse(line.as_bytes()).expect("an answer");
            // A host may ask for so many dimensions, and a mad worker agree.
            let call = call(&["", "", "", ""], Parameters::new().dimensions(dimension), Promised::Vectors);
            assert_eq!(answer.part(&call, 0..4, &info).err().as_deref(), Some("the matrix has another size than told"));
        }
    }

    fn call<T>(texts: &[&str], parameters: Parameters, promised: fn(Arc<Promise<T>>) -> Promised) -> TextCall {
        let texts = texts.iter().map(|&text| text.into()).collect();
        TextCall::new(1, texts, parameters, promised(Arc::default()), Duration::ZERO)
    }

    fn read_part(call: &TextCall, members: &str) -> Result<Part, String> {
        let info = br#"{"protocol": 1, "model": "m", "fingerprint": "f", "dimension": 9}"#;
        let info = Info::parse(info).expect("an `info`");
        let line = format!(r#"{{"id":1,"status":"ok","model":"m","fingerprint":"f","count":2,{members}}}"#);
        Answer::parse(line.as_bytes()).expect("an answer").part(call, 0..2, &info)
    }

    #[test]
    fn halves_and_signs_are_decoded_and_have_lengths_of_their_own() {
        let read = |precision, bytes: &[u8]| {
            let call = call(&["a", "b"], Parameters::new().precision(precision), Promised::Vectors);
            let base64 = STANDARD.encode(bytes);
            let members = r#""dimension":9,"tokens":[3,3],"truncated":[],"embeddings_base64""#;
            read_part(&call, &format!(r#"{members}:"{base64}""#))
        };
        let halves = read(Precision::Float16, &[0x00, 0x3c].repeat(18)).expect("halves");
        assert_eq!((halves.float16, halves.vectors.len(), halves.ubinary.len()), (vec![0x3c00; 18], 0, 0));
        let signs = read(Precision::Ubinary, &[0x80, 0x80, 0x7f, 0x80]).expect("signs");
        assert_eq!(signs.ubinary, [0x80, 0x80, 0x7f, 0x80]);
        for wrong in [
            read(Precision::Float16, &[0x80, 0x80, 0x7f, 0x80]),
            read(Precision::Ubinary, &[0x80; 3]),
            read(Precision::Ubinary, &[0x80; 5]),
            read(Precision::Ubinary, &[0; 36]),
            read(Precision::Float16, &[0x00, 0x7c].repeat(18)), // infinite
            read(Precision::Float16, &[0x01, 0xfe].repeat(18)), // not a number
        ] {
            assert!(wrong.is_err());
        }
    }

    #[test]
    fn tokens_are_counted_and_lie_in_their_text() {
        let call = call(&["a 😀b", ""], Parameters::new().offsets(true), Promised::Tokens);
        let read = |offsets: &str| read_part(&call, &format!(r#""tokens":[6,2],"truncated":[]{offsets}"#));
        let part = read(r#","offsets":[[[0,1],[2,3],[2,3],[3,4]],[]]"#).expect("tokens");
        assert_eq!((part.tokens, part.offsets), (vec![6, 2], vec![vec![0..1, 2..3, 2..3, 3..4], vec![]]));
        for wrong in [
            "",
            "null",
            "[[]]",
            "[[],null]",
            "[[],[[0,1]]]",
            "[[[0,5]],[]]",
            "[[[-1,1]],[]]",
            "[[[1,0]],[]]",
            "[[[0.5,1]],[]]",
            "[[[\"0\",1]],[]]",
            "[[[0,null]],[]]",
            "[[[0]],[]]",
            "[[[0,1,2]],[]]",
        ] {
            let member = if wrong.is_empty() { String::new() } else { format!(r#","offsets":{wrong}"#) };
            assert!(read(&member).is_err(), "{wrong}");
        }
    }

    #[test]
    fn requests_are_one_line_of_what_the_page_names() {
        let parameters = Parameters::query().model("m");
        let embedding = Arc::new(call(&["a", "b\n"], parameters.clone(), Promised::Vectors));
        let embed = |role_prompt| Request::Texts { call: Arc::clone(&embedding), range: 1..2, role_prompt };
        let counting = Arc::new(call(&["a"], parameters.truncate(false).offsets(true), Promised::Tokens));
        let mut lines = Vec::new();
        for (id, request) in (1..).zip([
            Request::Info { model: None },
            Request::LoadModel { model: "m".into() },
            Request::Ping,
            Request::Cancel { target: 7 },
            embed(Some(RolePrompt::Named("query"))),
            embed(Some(RolePrompt::Nothing)),
            Request::Texts { call: counting, range: 0..1, role_prompt: Some(RolePrompt::Named("query")) },
        ]) {
            request.encode(id, &mut lines);
        }
        let expected = r#"{"id":1,"method":"info"}
{"id":2,"method":"load_model","model":"m"}
{"id":3,"method":"ping"}
{"id":4,"method":"cancel","target":7}
{"id":5,"method":"embed","encoding_format":"base64","model":"m","prompt_name":"query","inputs":["b\n"]}
{"id":6,"method":"embed","encoding_format":"base64","model":"m","prompt":"","inputs":["b\n"]}
{"id":7,"method":"tokenize","model":"m","prompt_name":"query","truncate":false,"offsets":true,"inputs":["a"]}
"#;
        assert_eq!(String::from_utf8_lossy(&lines), expected);
    }
}
