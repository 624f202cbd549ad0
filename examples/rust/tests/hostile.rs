//! A worker gone mad: each call ends, with the error of the table that all clients share or with the right vectors.

mod support;

use std::time::Duration;

use embed_bridge::{EmbedBridge, Embeddings, Error, Options, Parameters};
use serde_json::Value;
use support::{but, shared, spawn, testing};

const VECTOR: [f32; 8] = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];

/// The cases of a section with their ids; one with `values` once for each.
fn cases(section: &str) -> Vec<(String, Value)> {
    let table: Value = serde_json::from_str(&shared("hostile.json")).expect("the table");
    let mut cases = Vec::new();
    for case in table[section]["cases"].as_array().expect("cases") {
        let name = case["name"].as_str().expect("a name");
        match case["values"].as_array() {
            None => cases.push((name.to_owned(), case.clone())),
            Some(values) => cases.extend((0..values.len()).map(|number| (format!("{name} #{number}"), case.clone()))),
        }
    }
    cases
}

fn hostile(arguments: &[&str]) -> Options {
    but(testing("hostile_worker", arguments), |options| {
        options.backoff_initial = Duration::from_millis(1);
        options.backoff_max = Duration::from_millis(1);
        options.ping_every = Duration::from_millis(100);
        options.drain = Duration::from_millis(200);
        options.replay = false;
    })
}

/// How a call ended, as the table names it.
fn end_of(outcome: Result<Embeddings, Error>, inputs: usize) -> String {
    match outcome {
        Ok(embeddings) => {
            assert_eq!(embeddings.vectors, VECTOR.repeat(inputs));
            "ok".into()
        }
        Err(Error::Request { code, .. }) => code.to_string(),
        Err(error) => error.kind().into(),
    }
}

fn check(bridge: &EmbedBridge, id: &str, case: &Value, wrong: &mut Vec<String>) {
    let inputs = usize::try_from(case["inputs"].as_u64().unwrap_or(1)).expect("a few");
    let mut parameters = Parameters::new();
    parameters.model = case["request"]["model"].as_str().map(str::to_owned);
    let outcome = bridge.embed_with(&vec![id; inputs], parameters);
    let told = format!("{id}: {outcome:?} instead of {}", case["then"]);
    let end = end_of(outcome, inputs);
    if !case["then"].as_array().expect("outcomes").iter().any(|then| *then == *end) {
        wrong.push(told);
    }
}

#[test]
fn hostile_answers() {
    let bridge = spawn(but(hostile(&[]), |options| options.restart_budget = f64::INFINITY));
    let mut wrong = Vec::new();
    for (id, case) in cases("answers") {
        check(&bridge, &id, &case, &mut wrong);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn hostile_starts() {
    let mut wrong = Vec::new();
    for (id, case) in cases("starts") {
        let bridge = spawn(but(hostile(&["--start", &id]), |options| options.restart_budget = 1.0));
        check(&bridge, &id, &case, &mut wrong);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
