//! The bridge keeps to the policy file that the clients of all languages share.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{json, Map, Value};

use crate::chunk::tests::chunks;
use crate::exit::{cause_of, signal_number, Cause, End};
use crate::health::{Check, Health};
use crate::info::{Info, Limits};
use crate::lifecycle::{Budget, Loss, Restart};
use crate::options::Options;
use crate::parameters::Role;
use crate::policy;

/// Numbers of clients that do not look for the input to blame.
const ELSEWHERE: [&str; 1] = ["max_attempts"];
const ALL_CAUSES: [Cause; 13] = [
    Cause::Asked,
    Cause::Crashed,
    Cause::Hung,
    Cause::Killed,
    Cause::OutOfMemory,
    Cause::Recycled,
    Cause::Exited,
    Cause::BrokeProtocol,
    Cause::StartTimeout,
    Cause::NotSpawned,
    Cause::Unusable,
    Cause::ProtocolMismatch,
    Cause::ModelChanged,
];

#[derive(Deserialize)]
struct Policy {
    numbers: BTreeMap<String, f64>,
    default_limits: BTreeMap<String, usize>,
    environment: Environment,
    ends: Section<EndCase>,
    restarts: Section<RestartCase>,
    health: Section<HealthCase>,
    #[serde(rename = "pieces")]
    chunks: Section<ChunkCase>,
    commands: Section<CommandCase>,
    prompts: Section<PromptCase>,
}

#[derive(Deserialize)]
struct Section<T> {
    cases: Vec<T>,
}

fn policy() -> Policy {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../bridge_client/testing/conformance/policy.json");
    let text = std::fs::read_to_string(file).expect("a checkout of the project");
    serde_json::from_str(&text).expect("the policy file")
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

// Numbers ---------------------------------------------------------------------------------------------------------

#[test]
fn every_number_is_the_one_of_the_policy() {
    let options = Options::default();
    let s = |duration: Duration| json!(duration.as_secs_f64());
    let ours = json!({
        "piece_tokens": policy::CHUNK_TOKENS,
        "piece_bytes": policy::CHUNK_BYTES,
        "bytes_per_token": policy::BYTES_PER_TOKEN,
        "special_tokens": policy::SPECIAL_TOKENS,
        "most_tokens": policy::MOST_TOKENS,
        "short_tokens": policy::SHORT_TOKENS,
        "window_requests": policy::WINDOW_REQUESTS,
        "window_tokens": policy::WINDOW_TOKENS,
        "window_bytes": policy::WINDOW_BYTES,
        "max_answer_bytes": policy::MAX_ANSWER_BYTES,
        "max_dimension": policy::MAX_DIMENSION,
        "stderr_tail_bytes": policy::STDERR_TAIL_BYTES,
        "nonsense_before_ready": policy::INVALID_LINES_BEFORE_READY,
        "pipe_grace_s": s(policy::PIPE_GRACE),
        "pipe_lost_s": s(policy::PIPE_LOST),
        "longest_drain_s": s(policy::LONGEST_DRAIN),
        "request_timeout_s": s(options.request_timeout),
        "start_timeout_s": s(options.start_timeout),
        "drain_s": s(options.drain),
        "terminate_s": s(options.terminate),
        "restart_budget": options.restart_budget,
        "restart_forgive_s": s(options.restart_forgive),
        "backoff_initial_s": s(options.backoff_initial),
        "backoff_max_s": s(options.backoff_max),
        "backoff_jitter": policy::BACKOFF_JITTER,
        "half_open_initial_s": s(options.half_open_initial),
        "half_open_max_s": s(options.half_open_max),
        "healthy_s": s(policy::HEALTHY),
        "recycle_every_s": s(policy::RECYCLE_EVERY),
        "ping_every_s": s(options.ping_every),
        "pong_timeout_s": s(options.pong_timeout),
        "pong_misses": policy::PONG_MISSES,
        "stuck_after_s": s(options.stuck_after),
        "slow_factor": policy::SLOW_FACTOR,
        "average_weight": policy::AVERAGE_WEIGHT,
    });
    let ours: BTreeMap<String, f64> = serde_json::from_value(ours).expect("numbers");
    let mut told = policy().numbers;
    told.retain(|name, _| !ELSEWHERE.contains(&&**name));
    assert_eq!(ours, told);
}

#[test]
fn the_limits_of_a_worker_that_tells_none_are_those_of_the_policy() {
    let limits = Limits::default();
    let ours = json!({
        "max_line_bytes": limits.max_line_bytes,
        "max_inputs": limits.max_inputs,
        "max_text_bytes": limits.max_text_bytes,
        "max_in_flight": limits.max_in_flight,
        "max_in_flight_bytes": limits.max_in_flight_bytes,
    });
    assert_eq!(ours, json!(policy().default_limits));
}

// Environment -----------------------------------------------------------------------------------------------------

#[derive(Deserialize)]
struct Environment {
    passed: Vec<String>,
    by_default: BTreeMap<String, String>,
    cases: Vec<EnvironmentCase>,
}

#[derive(Deserialize)]
struct EnvironmentCase {
    name: String,
    system: String,
    host: BTreeMap<String, String>,
    option: BTreeMap<String, String>,
    passed: BTreeMap<String, String>,
}

#[test]
fn a_worker_gets_of_the_environment_what_the_policy_says() {
    let environment = policy().environment;
    assert_eq!(environment.passed, policy::PASSED_ENVIRONMENT);
    let by_default = policy::ENVIRONMENT_BY_DEFAULT.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(environment.by_default, BTreeMap::from(by_default));
    for case in environment.cases {
        let given = |variables: BTreeMap<String, String>| {
            variables.into_iter().map(|(name, value)| (OsString::from(name), OsString::from(value)))
        };
        let passed =
            policy::worker_environment(given(case.host), given(case.option), case.system == "windows").collect();
        let passed: BTreeMap<OsString, OsString> = passed;
        assert_eq!(passed, given(case.passed).collect(), "{}", case.name);
    }
}

#[derive(Deserialize)]
struct CommandCase {
    given: Vec<String>,
    started: Vec<String>,
}

#[test]
fn a_command_of_the_hosts_own_is_supervised() {
    for case in policy().commands.cases {
        let line = |words: &[String]| words.iter().map(OsString::from).collect::<Vec<_>>();
        assert_eq!(policy::worker_command(&line(&case.given)), line(&case.started));
    }
}

// Ends ------------------------------------------------------------------------------------------------------------

#[derive(Deserialize, Debug)]
struct EndCase {
    system: String,
    signal: Option<String>,
    status: Option<u32>,
    killed_for: Option<String>,
    cause: String,
    blames_input: bool,
    is_permanent: bool,
}

#[test]
fn an_end_means_what_the_policy_says() {
    for case in policy().ends.cases {
        let end = match (&case.signal, case.status) {
            (Some(name), _) => {
                let Some(number) = signal_number(name) else { continue }; // this system has no such signal
                End::Signal(number)
            }
            (None, status) => End::Status(status.expect("a signal or a status")),
        };
        let named = |name: &str| ALL_CAUSES.into_iter().find(|cause| cause.as_str() == name).expect("a cause");
        let cause = cause_of(end, case.killed_for.as_deref().map(named), case.system == "windows");
        let verdict = (cause.as_str(), cause.may_blame_input(), cause.is_permanent());
        assert_eq!(verdict, (&*case.cause, case.blames_input, case.is_permanent), "{case:?}");
    }
}

// Restarts --------------------------------------------------------------------------------------------------------

#[derive(Deserialize)]
struct RestartCase {
    name: String,
    #[serde(default)]
    numbers: Map<String, Value>,
    lives: Vec<Life>,
}

#[derive(Deserialize)]
struct Life {
    ready_s: Option<f64>,
    useful_s: Option<f64>,
    gone_s: f64,
    #[serde(default)]
    is_recycle: bool,
    is_charged: Option<bool>,
    #[serde(default)]
    is_investigation: bool,
    #[serde(default)]
    jitter: f64,
    then: BTreeMap<String, f64>,
}

fn options_of(numbers: &Map<String, Value>) -> Options {
    let mut options = Options::default();
    for (name, value) in numbers {
        let value = value.as_f64().expect("a number");
        match name.as_str() {
            "restart_budget" => options.restart_budget = value,
            "restart_forgive_s" => options.restart_forgive = seconds(value),
            "backoff_initial_s" => options.backoff_initial = seconds(value),
            "half_open_initial_s" => options.half_open_initial = seconds(value),
            other => panic!("{other}"),
        }
    }
    options
}

#[test]
fn restarts_are_those_of_the_policy() {
    for case in policy().restarts.cases {
        let (options, mut budget, mut now) = (options_of(&case.numbers), Budget::default(), Instant::now());
        for (number, life) in case.lives.into_iter().enumerate() {
            life.ready_s.into_iter().for_each(|at| budget.ready(now + seconds(at)));
            life.useful_s.into_iter().for_each(|at| budget.embedded(now + seconds(at)));
            now += seconds(life.gone_s);
            let Life { is_recycle, is_investigation, jitter, .. } = life;
            let is_charged = life.is_charged.unwrap_or(true);
            let loss = Loss { is_recycle, is_charged, is_investigation, jitter };
            let (decision, at) = match budget.lost(loss, now, &options) {
                Restart::At(at) => ("restart_in_s", at),
                Restart::Open(at) => ("refuse_for_s", at),
            };
            let (place, wait_s) = (format!("{}, life {number}", case.name), (at - now).as_secs_f64());
            let told = life.then.get(decision).unwrap_or_else(|| panic!("{place}: {decision} {wait_s}"));
            assert!((told - wait_s).abs() < 1e-6, "{place}: {wait_s} instead of {told}");
            now = at;
        }
    }
}

// Health ----------------------------------------------------------------------------------------------------------

#[derive(Deserialize)]
struct HealthCase {
    name: String,
    events: Vec<Event>,
}

#[derive(Deserialize)]
struct Event {
    at_s: f64,
    on: String,
    #[serde(default)]
    is_busy: bool,
    micro_batches: Option<u64>,
    then: Option<String>,
}

#[test]
fn hangs_are_those_of_the_policy() {
    let options = Options::default();
    for case in policy().health.cases {
        let start = Instant::now();
        let mut health = Health::new(start);
        for event in case.events {
            let now = start + seconds(event.at_s);
            match event.on.as_str() {
                "work" => health.work_began(now),
                "line" => health.received(now),
                "answer" => {
                    health.received(now);
                    health.embedded(now);
                }
                "pong" => {
                    health.received(now);
                    health.ponged(event.micro_batches.expect("a count"), event.is_busy, now, &options);
                }
                "check" => {
                    let told = match event.then.as_deref() {
                        Some("nothing") => Check::Nothing,
                        Some("ping") => Check::Ping,
                        Some("silent") => Check::Silent,
                        Some("stuck") => Check::Stuck,
                        other => panic!("{other:?}"),
                    };
                    assert_eq!(health.check(event.is_busy, now, &options), told, "{} at {}", case.name, event.at_s);
                }
                other => panic!("{other}"),
            }
        }
    }
}

// Chunks ----------------------------------------------------------------------------------------------------------

#[derive(Deserialize)]
struct ChunkCase {
    name: String,
    #[serde(default)]
    input_bytes: Vec<usize>,
    #[serde(default)]
    input_repeated: Vec<(usize, usize)>,
    #[serde(rename = "pieces")]
    chunks: Vec<(usize, usize)>,
}

#[test]
fn pieces_are_those_of_the_policy() {
    for case in policy().chunks.cases {
        let repeated = case.input_repeated.into_iter().chain(case.input_bytes.into_iter().map(|bytes| (1, bytes)));
        let texts = repeated.flat_map(|(count, bytes)| vec!["x".repeat(bytes); count]).collect();
        let ranges: Vec<_> =
            chunks(texts, &Limits::default()).iter().map(|chunk| (chunk.range.start, chunk.range.end)).collect();
        assert_eq!(ranges, case.chunks, "{}", case.name);
    }
}

// Prompts ---------------------------------------------------------------------------------------------------------

#[derive(Deserialize)]
struct PromptCase {
    prompts: Map<String, Value>,
    query: Option<String>,
    document: Option<String>,
}

#[test]
fn queries_and_documents_get_the_prompts_of_the_policy() {
    for case in policy().prompts.cases {
        let line = json!({
            "protocol": 1, "model": "m", "fingerprint": "f", "dimension": 1, "prompts": case.prompts,
        });
        let info = Info::parse(line.to_string().as_bytes()).expect("an `info`");
        for (role, told) in [(Role::Query, case.query), (Role::Document, case.document)] {
            assert_eq!(info.first_prompt(role.prompt_names()), told.as_deref(), "{role:?} of {:?}", info.prompts);
        }
    }
}
