//! Texts that kill workers: they are found, and nobody else pays for them.

mod support;

use embed_bridge::{EmbedBridge, Error, Parameters, Pending};
use support::{count_file, fake, impatient, kill, path, pid, spawn, vector, wait_until};

fn texts(count: usize, guilty: &[usize]) -> Vec<String> {
    let word = |number| if guilty.contains(&number) { "bad" } else { "good" };
    (0..count).map(|number| format!("{} {number}", word(number))).collect()
}

/// Embed texts of which some are guilty: they are named, and the vectors of the others are right.
fn assert_found(bridge: &EmbedBridge, count: usize, guilty: &[usize]) {
    let texts = texts(count, guilty);
    let error = bridge.embed(&texts).expect_err("guilty inputs");
    let Error::PoisonedInput { indexes, others: Some(others), .. } = error else { panic!("{error:?}") };
    assert_eq!(indexes, guilty);
    let innocent = texts.iter().enumerate().filter(|(index, _)| !guilty.contains(index)).map(|(_, text)| text);
    assert_eq!(others.len(), count - guilty.len());
    for (row, text) in others.rows().zip(innocent) {
        assert_eq!(row, vector(text), "{text}");
    }
}

#[test]
fn guilty_inputs_are_found_among_many_by_halving() {
    let bridge = spawn(fake(&["--poison=bad"]));
    assert_found(&bridge, 64, &[41]);
    let restarts = bridge.stats().restarts;
    assert!((2..=2 + 2 * 6).contains(&restarts), "a call of 64 may kill so many: {restarts}");
    let bridge = spawn(fake(&["--poison=bad", "--poison-status=70"]));
    assert_found(&bridge, 8, &[2, 5]);
}

#[test]
fn a_found_text_kills_no_worker_again_and_the_others_of_its_call_are_embedded() {
    let bridge = spawn(fake(&["--poison=bad"]));
    assert_found(&bridge, 1 + 8, &[0]);
    let restarts = bridge.stats().restarts;
    assert_found(&bridge, 1 + 8, &[0]);
    let error = bridge.embed(&["bad 0"]).expect_err("known");
    assert!(matches!(&error, Error::PoisonedInput { others: None, .. }), "{error:?}");
    assert_eq!(bridge.stats().restarts, restarts);
    assert!(!format!("{error} {error:?}").contains("bad"), "no text in an error");
}

#[test]
fn a_text_that_kills_workers_fails_its_own_call_and_no_other() {
    let bridge = spawn(fake(&["--poison=bad", "--latency=0.002"]));
    let texts = ["good 1", "good 2", "a bad one", "good 3", "good 4"];
    let calls = texts.map(|text| bridge.submit(vec![text.into()], Parameters::new()).expect("room"));
    for (outcome, text) in calls.map(Pending::wait).into_iter().zip(texts) {
        match outcome {
            Ok(embeddings) => assert_eq!(embeddings.vectors, vector(text)),
            Err(error) => assert_eq!((error.kind(), text), ("poisoned_input", "a bad one")),
        }
    }
}

#[test]
fn a_text_on_which_workers_hang_is_found_too() {
    let bridge = spawn(impatient(fake(&["--poison=bad", "--poison-hangs"])));
    assert_found(&bridge, 2, &[1]);
}

#[test]
fn a_signal_from_outside_blames_nobody() {
    let file = count_file();
    let bridge = spawn(fake(&["--stall-after=0", "--processes=3", "--count-file", path(&file)]));
    let call = bridge.submit(vec!["innocent".into()], Parameters::new()).expect("room");
    for round in 1..=3 {
        wait_until("it is in flight", || bridge.stats().in_flight > 0);
        assert!(kill(pid(&bridge)));
        wait_until("a new worker", || bridge.stats().restarts == round);
    }
    assert_eq!(call.wait().expect("vectors in the end").vectors, vector("innocent"));
}

#[test]
fn a_worker_that_is_short_of_memory_gets_smaller_pieces() {
    let killed = if cfg!(windows) { None } else { Some("--oom-above=16") }; // there allocations fail, and nobody kills
    for flag in killed.into_iter().chain(["--exit-75-above=16"]) {
        let bridge = spawn(fake(&[flag]));
        let texts = texts(64, &[]);
        let outcome = bridge.embed(&texts);
        if flag == "--exit-75-above=16" {
            assert!(outcome.expect_err("the worker's word").to_string().starts_with("out_of_memory"));
        }
        let embeddings = bridge.embed(&texts).expect("vectors, sixteen at a time");
        assert!(embeddings.rows().zip(&texts).all(|(row, text)| row == vector(text)));
    }
}

#[test]
fn a_call_with_too_many_guilty_inputs_fails_as_a_whole_and_the_bridge_lives_on() {
    let bridge = spawn(fake(&["--poison=bad"]));
    let error = bridge.embed(&texts(8, &(0..8).collect::<Vec<_>>())).expect_err("all of them");
    assert_eq!(error.kind(), "worker_died", "{error}");
    assert_eq!(bridge.embed(&["good"]).expect("vectors").vectors, vector("good"));
}
