//! The adapter of the conformance suite: calls as JSON lines in, outcomes as JSON lines out. `docs/hosts.md` has the
//! contract; this program maps it to [`EmbedBridge`] and does nothing else.

use std::collections::HashMap;
use std::env;
use std::error::Error as StdError;
use std::ffi::OsString;
use std::io::{self, BufRead, Write};
use std::iter;
use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use base64::engine::general_purpose::STANDARD;
use base64::Engine as _;
use embed_bridge::{Canceller, EmbedBridge, Embeddings, Error, Options, Parameters, Precision, Tokenization};
use serde::Deserialize;
use serde_json::{json, Value};

#[derive(Deserialize)]
struct Call {
    #[serde(rename = "call")]
    number: u64,
    op: String,
    target: Option<u64>,
    #[serde(flatten)]
    arguments: Value,
}

/// What an `embed` or a `tokenize` may hold beside `call` and `op`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Embed {
    inputs: Inputs,
    model: Option<String>,
    timeout_s: Option<f64>,
    normalize: Option<bool>,
    dimensions: Option<usize>,
    prompt_name: Option<String>,
    prompt: Option<String>,
    truncate: Option<bool>,
    precision: Option<String>,
    offsets: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Inputs {
    One(String),
    Many(Vec<String>),
}

fn main() -> Result<(), Box<dyn StdError>> {
    let bridge = Arc::new(EmbedBridge::spawn(options()?)?);
    let mut cancellers: HashMap<u64, Canceller> = HashMap::new();
    let mut threads = Vec::new();
    for line in io::stdin().lock().lines() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let Call { number: call, op, target, arguments } = serde_json::from_str(&line)?;
        match op.as_str() {
            "embed" => match asked(arguments)
                .and_then(|(inputs, parameters)| bridge.submit(inputs, parameters).map_err(|error| failure(&error)))
            {
                Ok(pending) => {
                    cancellers.insert(call, pending.canceller());
                    threads
                        .push(thread::spawn(move || say(call, pending.wait().map(|embeddings| outcome(&embeddings)))));
                }
                Err(failure) => print(call, failure),
            },
            "tokenize" => match asked(arguments) {
                Ok((inputs, parameters)) => {
                    let pending = bridge.tokenize_async(inputs, parameters);
                    cancellers.insert(call, pending.canceller());
                    threads.push(thread::spawn(move || say(call, pending.wait().map(|found| tokens(&found)))));
                }
                Err(failure) => print(call, failure),
            },
            "cancel" => {
                if let Some(canceller) = target.and_then(|target| cancellers.get(&target)) {
                    canceller.cancel();
                }
                print(call, json!({}));
            }
            "stats" => {
                let stats = bridge.stats();
                print(call, json!({"restarts": stats.restarts, "pid": stats.pid}));
            }
            _ => {
                let bridge = Arc::clone(&bridge);
                threads.push(thread::spawn(move || say(call, ask(&bridge, &op))));
            }
        }
    }
    for thread in threads {
        thread.join().map_err(|_| "a call panicked")?;
    }
    bridge.close();
    Ok(())
}

fn asked(arguments: Value) -> Result<(Vec<String>, Parameters), Value> {
    let invalid =
        |message: String| json!({"ok": false, "error": "invalid_argument", "retryable": false, "message": message});
    let embed: Embed = serde_json::from_value(arguments).map_err(|error| invalid(error.to_string()))?;
    let timeout =
        embed.timeout_s.map(Duration::try_from_secs_f64).transpose().map_err(|error| invalid(error.to_string()))?;
    let inputs = match embed.inputs {
        Inputs::One(text) => vec![text],
        Inputs::Many(texts) => texts,
    };
    let mut parameters = Parameters::new();
    parameters.model = embed.model;
    parameters.timeout = timeout;
    parameters.normalize = embed.normalize;
    parameters.dimensions = embed.dimensions;
    parameters.prompt_name = embed.prompt_name;
    parameters.prompt = embed.prompt;
    parameters.truncate = embed.truncate;
    parameters.offsets = embed.offsets.unwrap_or(false);
    parameters.precision = match embed.precision.as_deref() {
        None | Some("float32") => Precision::Float32,
        Some("float16") => Precision::Float16,
        Some("ubinary") => Precision::Ubinary,
        Some(other) => return Err(invalid(format!("no precision {other:?}"))),
    };
    Ok((inputs, parameters))
}

fn ask(bridge: &EmbedBridge, op: &str) -> Result<Value, Error> {
    match op {
        "info" => bridge.info().map(|info| {
            json!({
                "model": info.model, "fingerprint": info.fingerprint, "dimension": info.dimension,
                "max_tokens": info.max_tokens, "protocol": info.protocol, "pid": info.pid,
            })
        }),
        "ping" => bridge.ping().map(|()| json!({})),
        "close" => {
            bridge.close();
            Ok(json!({}))
        }
        _ => panic!("unknown operation {op:?}"),
    }
}

fn outcome(embeddings: &Embeddings) -> Value {
    let mut bytes = embeddings.ubinary.clone(); // one of the three
    bytes.extend(embeddings.vectors.iter().flat_map(|value| value.to_le_bytes()));
    bytes.extend(embeddings.float16.iter().flat_map(|bits| bits.to_le_bytes()));
    json!({
        "count": embeddings.len(), "dimension": embeddings.dimension, "vectors_base64": STANDARD.encode(bytes),
        "tokens": embeddings.tokens, "truncated": embeddings.truncated,
        "model": embeddings.model, "fingerprint": embeddings.fingerprint,
    })
}

fn tokens(found: &Tokenization) -> Value {
    let mut told = json!({
        "count": found.tokens.len(), "tokens": found.tokens, "truncated": found.truncated,
        "model": found.model, "fingerprint": found.fingerprint,
    });
    if found.offsets.len() == found.tokens.len() {
        let ranges =
            |ranges: &Vec<Range<usize>>| ranges.iter().map(|range| [range.start, range.end]).collect::<Vec<_>>();
        told["offsets"] = found.offsets.iter().map(ranges).collect();
    }
    told
}

fn failure(error: &Error) -> Value {
    let causes = iter::successors(Some(error as &dyn StdError), |&error| error.source());
    let message = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
    let mut told = json!({"ok": false, "error": error.kind(), "retryable": false, "message": message});
    let index = match error {
        Error::Request { code, retryable, index, .. } => {
            told["code"] = json!(code.as_str());
            told["retryable"] = json!(retryable);
            *index
        }
        Error::PoisonedInput { indexes, .. } => indexes.first().copied(),
        _ => None,
    };
    if let Some(index) = index {
        told["index"] = json!(index);
    }
    told
}

fn say(call: u64, outcome: Result<Value, Error>) {
    print(call, outcome.unwrap_or_else(|error| failure(&error)));
}

/// Write one line, whole.
fn print(call: u64, mut outcome: Value) {
    outcome["call"] = json!(call);
    if outcome.get("ok").is_none() {
        outcome["ok"] = json!(true);
    }
    let mut stdout = io::stdout().lock();
    // A suite that reads no more has ended; there is nobody to tell.
    let _ = writeln!(stdout, "{outcome}").and_then(|()| stdout.flush());
}

/// The worker's command, and the suite's settings over the bridge's defaults.
fn options() -> Result<Options, Box<dyn StdError>> {
    let command: Vec<String> = serde_json::from_str(&env::var("CONFORMANCE_WORKER")?)?;
    let settings: Value = match env::var("CONFORMANCE_OPTIONS") {
        Ok(settings) => serde_json::from_str(&settings)?,
        Err(_) => json!({}),
    };
    let mut options = Options::with_command(command);
    if let Some(path) = env::var_os("PYTHONPATH") {
        options.env.push((OsString::from("PYTHONPATH"), path));
    }
    let seconds = |name: &str| settings[name].as_f64().map(Duration::from_secs_f64);
    for (name, option) in [
        ("request_timeout_s", &mut options.request_timeout),
        ("start_timeout_s", &mut options.start_timeout),
        ("backoff_initial_s", &mut options.backoff_initial),
        ("backoff_max_s", &mut options.backoff_max),
        ("ping_every_s", &mut options.ping_every),
        ("pong_timeout_s", &mut options.pong_timeout),
        ("stuck_after_s", &mut options.stuck_after),
        ("drain_s", &mut options.drain),
        ("terminate_s", &mut options.terminate),
    ] {
        if let Some(value) = seconds(name) {
            *option = value;
        }
    }
    let count = |name: &str| settings[name].as_u64().and_then(|count| u32::try_from(count).ok());
    if let Some(max_restarts) = count("max_restarts") {
        options.restart_budget = f64::from(max_restarts) + 1.0; // it counts failures, and the first start is none
        let window = seconds("restart_window_s").unwrap_or(options.restart_forgive);
        options.restart_forgive = window / max_restarts.max(1); // a bucket that leaks, no window
    }
    options.replay = count("max_attempts").map_or(true, |attempts| attempts > 1);
    Ok(options)
}
