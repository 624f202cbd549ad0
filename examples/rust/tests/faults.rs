//! What the bridge makes of a worker that misbehaves in every way that the fake worker knows.

mod support;

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use embed_bridge::{Cause, EmbedBridge, Error, ErrorCode, Options, Parameters, Pending, State};
use support::{
    but, count_file, exists, fake, fake_at_first, impatient, is_running, kill, path, pid, pid_in, spawn, terminate,
    vector, wait_until, within_bounds, WAIT,
};

const MOMENT: Duration = Duration::from_millis(100);

fn texts(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("text {number}")).collect()
}

fn without_replay(options: Options) -> Options {
    but(options, |options| options.replay = false)
}

fn assert_right(bridge: &EmbedBridge, text: &str) {
    assert_eq!(bridge.embed(&[text]).expect("vectors").vectors, vector(text));
}

#[test]
fn a_bridge_can_be_shared_by_threads() {
    fn is_shareable<T: Send + Sync>() {}
    fn can_be_awaited_anywhere<T: Future + Send + Sync + Unpin + 'static>() {}
    is_shareable::<EmbedBridge>();
    can_be_awaited_anywhere::<Pending>();
    let never = Duration::MAX;
    let options = but(fake(&["--reorder=2"]), |options| {
        (options.ping_every, options.stuck_after, options.restart_forgive) = (never, never, never);
    });
    let bridge = spawn(options);
    thread::scope(|scope| {
        for thread in 0..4 {
            let bridge = &bridge;
            scope.spawn(move || {
                for call in 0..10 {
                    let pair = [format!("{thread} {call} left"), format!("{thread} {call} right")];
                    let calls = pair.clone().map(|text| bridge.submit(vec![text], Parameters::new()).expect("room"));
                    for (call, text) in calls.into_iter().zip(pair) {
                        assert_eq!(call.wait().expect("vectors").vectors, vector(&text));
                    }
                }
            });
        }
    });
    assert_eq!(bridge.stats().restarts, 0);
}

#[test]
fn a_large_call_is_cut_by_the_limits_and_joined_in_order() {
    let bridge = spawn(fake(&["--max-inputs=7", "--max-in-flight=2"]));
    let texts = texts(50);
    let embeddings = bridge.embed(&texts).expect("vectors");
    assert_eq!((embeddings.len(), embeddings.dimension), (50, 8));
    for (row, text) in embeddings.rows().zip(&texts) {
        assert_eq!(row, vector(text));
    }
    let long = "long ".repeat(600);
    let embeddings = bridge.embed(&[&[long.as_str()], &["short"; 10][..], &[long.as_str()]].concat()).expect("vectors");
    assert_eq!(embeddings.truncated, [0, 11]);
    assert_eq!(embeddings.tokens[..2], [602, 3]);
    assert!(bridge.embed::<&str>(&[]).expect("an empty answer").is_empty());
}

#[test]
fn parameters_travel_and_the_workers_no_is_passed_on() {
    let bridge = spawn(fake(&["--max-inputs=2", "--error-after=4:input_too_long"]));
    let parameters = Parameters::new().dimensions(4).normalize(true);
    let embeddings = bridge.embed_with(&["a", "b", "c"], parameters).expect("vectors");
    assert_eq!((embeddings.dimension, embeddings.vectors.len()), (4, 12));
    let error = bridge.embed(&texts(6)).expect_err("the third piece is refused");
    let Error::Request { code, retryable: false, index: Some(4), .. } = error else { panic!("{error:?}") };
    assert_eq!(code, ErrorCode::InputTooLong);
}

#[test]
fn a_text_that_fits_into_no_line_is_refused_before_it_is_sent() {
    let bridge = spawn(fake(&["--max-line-bytes=1000"]));
    let error = bridge.embed(&["fits", &"\n".repeat(400)]).expect_err("too long");
    assert!(matches!(error, Error::Request { index: Some(1), .. }), "{error:?}");
    assert_eq!(bridge.embed(&texts(100)).expect("cut").len(), 100);
}

#[test]
fn sigkill_under_load_costs_no_call_more_than_one_clear_error() {
    let bridge = spawn(fake(&["--latency=0.001"]));
    let is_over = AtomicBool::new(false);
    let counts: Vec<usize> = thread::scope(|scope| {
        let load = |thread: usize| {
            let (bridge, is_over) = (&bridge, &is_over);
            move || {
                let mut calls = 0;
                while !is_over.load(Ordering::Relaxed) {
                    let text = format!("{thread} {calls}");
                    assert_right(bridge, &text);
                    calls += 1;
                }
                calls
            }
        };
        let threads: Vec<_> = (0..4).map(|thread| scope.spawn(load(thread))).collect();
        for round in 1..=3 {
            wait_until("work in flight", || bridge.stats().in_flight > 0);
            assert!(kill(pid(&bridge)));
            wait_until("a new worker", || bridge.stats().restarts == round);
        }
        is_over.store(true, Ordering::Relaxed);
        threads.into_iter().map(|thread| thread.join().expect("right vectors")).collect()
    });
    assert!(counts.iter().all(|&count| count > 0), "{counts:?}");
    assert_right(&bridge, "afterwards");
}

#[test]
fn without_replay_a_death_is_an_error_and_the_next_call_works() {
    let bridge = spawn(without_replay(fake_at_first(&["--kill-after=0"])));
    let error = bridge.embed(&["lost"]).expect_err("it died");
    let Error::WorkerDied(exit) = &error else { panic!("{error:?}") };
    assert!(exit.status.is_some_and(|status| !status.success()));
    assert_right(&bridge, "next");
}

#[test]
fn a_worker_that_leaves_in_good_order_is_no_death() {
    let bridge = spawn(without_replay(fake_at_first(&["--exit-after=0:79"])));
    assert_right(&bridge, "recycled");
    let bridge = spawn(without_replay(fake_at_first(&["--error-after=0:shutting_down"])));
    let worker = pid(&bridge);
    let pending = bridge.submit(vec!["not begun".into()], Parameters::new()).expect("room");
    wait_until("the answer that is none", || bridge.stats().in_flight == 0 && bridge.stats().queued == 1);
    assert!(terminate(worker));
    assert_eq!(pending.wait().expect("vectors of the next worker").vectors, vector("not begun"));
}

#[test]
fn answers_that_do_not_fit_are_never_used() {
    for fault in [
        "--garbage-after=0",
        "--wrong-count-after=0",
        "--wrong-dimension-after=0",
        "--truncated-base64-after=0",
        "--nan-after=0",
        "--other-fingerprint-after=0",
        "--partial-line-after=0",
    ] {
        assert_replaced_after(fault);
    }
}

#[test]
fn a_worker_that_closes_its_output_and_lives_on_is_replaced() {
    assert_replaced_after("--close-output-after=0");
}

fn assert_replaced_after(fault: &str) {
    let bridge = spawn(fake_at_first(&[fault]));
    assert_right(&bridge, fault);
    assert_eq!(bridge.stats().restarts, 1, "{fault}");
}

#[test]
fn a_worker_that_is_always_wrong_costs_the_restart_budget() {
    let bridge = spawn(but(fake(&["--wrong-count-after=0"]), |options| options.restart_budget = 2.0));
    let error = bridge.embed(&["text"]).expect_err("two wrong answers");
    let Error::CircuitOpen { last, .. } = &error else { panic!("{error:?}") };
    assert!(matches!(&**last, Error::WorkerDied(exit) if exit.detail.contains("does not fit")), "{error:?}");
    assert_eq!(error.exit().map(|exit| exit.cause), Some(Cause::BrokeProtocol));
}

#[test]
fn repeated_unknown_and_noisy_lines_do_no_harm() {
    let noise = ["--duplicate-after=0", "--unknown-ids", "--garbage-before-ready=5", "--stderr-flood=300000"];
    for flags in [&noise[..], &["--stderr-flood=300000", "--stderr-no-newline", "--slow-write=50:0.001"]] {
        let bridge = spawn(fake(flags));
        for text in texts(5) {
            assert_right(&bridge, &text);
        }
        assert_eq!(bridge.stats().restarts, 0);
    }
}

#[test]
fn a_hung_worker_is_replaced() {
    thread::scope(|scope| {
        for fault in ["--hang-after=0", "--stop-after=0", "--stop-reading-after=0", "--stall-after=0"] {
            scope.spawn(move || {
                let bridge = spawn(impatient(fake_at_first(&[fault])));
                assert_right(&bridge, fault);
                assert_eq!(bridge.stats().restarts, 1, "{fault}");
            });
        }
        let bridge = spawn(impatient(without_replay(fake(&["--hang-after=0"]))));
        let error = bridge.embed(&["text"]).expect_err("it hangs");
        assert_eq!(error.kind(), "worker_hung", "{error}");
    });
}

#[test]
fn a_call_that_takes_too_long_ends_and_the_worker_lives_on() {
    let bridge = spawn(fake(&["--latency=3600"]));
    let worker = pid(&bridge);
    let error = bridge.embed_with(&["slow"], Parameters::new().timeout(MOMENT)).expect_err("an hour is too long");
    assert!(matches!(error, Error::Timeout(after) if after == MOMENT), "{error:?}");
    bridge.ping().expect("slow is not hung");
    assert_eq!((pid(&bridge), bridge.stats().restarts), (worker, 0));
    wait_until("the worker dropped it", || bridge.stats().in_flight == 0);
}

#[test]
fn a_time_out_covers_the_wait_for_a_worker() {
    let bridge = spawn(fake(&["--start-delay=3600"]));
    let error = bridge.embed_with(&["early"], Parameters::new().timeout(MOMENT)).expect_err("no worker yet");
    assert_eq!(error.kind(), "timeout");
}

#[test]
fn calls_can_be_withdrawn() {
    let bridge = spawn(fake(&["--latency=3600"]));
    let pending = bridge.submit(vec!["unwanted".into()], Parameters::new()).expect("room");
    pending.canceller().cancel();
    assert_eq!(pending.wait().expect_err("withdrawn").kind(), "cancelled");
    drop(bridge.submit(vec!["forgotten".into()], Parameters::new()).expect("room"));
    bridge.info().expect("a ready worker");
    wait_until("the worker dropped both", || bridge.stats().in_flight == 0 && bridge.stats().queued == 0);
}

#[test]
fn a_full_queue_refuses_or_makes_wait() {
    let bridge = spawn(but(fake(&["--start-delay=1"]), |options| options.max_queued = 2));
    let calls = [(); 2].map(|()| bridge.submit(vec!["early".into()], Parameters::new()).expect("room"));
    let refused = bridge.submit(vec!["one more".into()], Parameters::new()).expect_err("no room");
    assert_eq!(refused.kind(), "queue_full");
    let error =
        bridge.embed_with(&["in a hurry"], Parameters::new().timeout(Duration::ZERO)).expect_err("no room in time");
    assert_eq!(error.kind(), "timeout");
    assert_right(&bridge, "patient");
    for call in calls {
        call.wait().expect("vectors");
    }
}

#[test]
fn a_worker_that_cannot_start_is_not_started_again() {
    let bridge = spawn(fake(&["--fail-start=78"]));
    for _ in 0..2 {
        let error = bridge.embed(&["text"]).expect_err("no worker");
        let Error::WorkerStart(exit) = &error else { panic!("{error:?}") };
        assert_eq!(exit.status.and_then(|status| status.code()), Some(78));
        assert!(exit.stderr_tail.contains("told to fail"), "{error}");
    }
    assert_eq!((bridge.stats().restarts, bridge.stats().state), (0, State::Failed));
    let error = spawn(Options::with_command(["there is no such program"])).info().expect_err("nothing to execute");
    assert_eq!(error.kind(), "start", "{error}");
    let astray = but(fake(&[]), |options| options.cwd = Some("no such folder".into()));
    let error = spawn(astray).info().expect_err("nowhere to be");
    assert_eq!(error.kind(), "start", "{error}");
    assert!(error.to_string().contains("there is no folder no such folder"), "{error}");
}

#[test]
fn too_many_failures_open_the_circuit_until_the_next_attempt() {
    let file = count_file();
    let flags = ["--fail-start=1", "--processes=3", "--count-file", path(&file)];
    let bridge =
        spawn(but(fake(&flags), |options| (options.restart_budget, options.half_open_initial) = (3.0, MOMENT)));
    let error = bridge.embed(&["early"]).expect_err("three failures");
    assert!(matches!(&error, Error::CircuitOpen { last, .. } if last.kind() == "start"), "{error:?}");
    wait_until("the attempt after it", || bridge.stats().state == State::Ready);
    assert_right(&bridge, "late");
}

#[test]
fn a_worker_that_is_not_ready_in_time_is_killed() {
    // Not while the process is made: that leaves its pipes to the console helper of Wine.
    let start_timeout = if cfg!(windows) { 20 * MOMENT } else { MOMENT };
    let options = but(fake(&["--start-delay=3600"]), |options| {
        (options.start_timeout, options.restart_budget) = (start_timeout, 1.0);
    });
    let error = spawn(options).info().expect_err("never ready");
    let exit = error.exit().expect("how it ended");
    assert_eq!(exit.cause, Cause::StartTimeout);
    assert!(exit.detail.contains("not ready after"), "{error:?}");
}

#[test]
fn another_model_after_a_restart_is_refused_for_good() {
    let file = count_file();
    let flags = ["--change-model", "--kill-after=1", "--count-file", path(&file)];
    let bridge = spawn(fake(&flags));
    bridge.embed(&["first"]).expect("vectors of the first model");
    for _ in 0..2 {
        assert_eq!(bridge.embed(&["second"]).expect_err("another vector space").kind(), "model_changed");
    }
}

#[test]
fn another_protocol_is_refused_for_good() {
    let bridge = spawn(fake(&["--protocol=2"]));
    let error = bridge.embed(&["text"]).expect_err("another protocol");
    assert_eq!((error.kind(), bridge.stats().restarts), ("protocol_mismatch", 0), "{error}");
}

#[test]
fn close_lets_the_worker_finish_and_refuses_what_comes_later() {
    // It answers one request at its end only.
    let bridge = spawn(but(fake(&["--reorder=2"]), |options| options.drain = WAIT));
    let worker = pid(&bridge);
    let begun = bridge.submit(vec!["begun".into()], Parameters::new()).expect("room");
    bridge.close();
    assert!(!exists(worker), "it must be reaped");
    assert_eq!(begun.wait().expect("finished").vectors, vector("begun"));
    assert_eq!(bridge.embed(&["late"]).expect_err("closed").kind(), "closed");
    bridge.close();
}

#[test]
fn close_ends_a_worker_that_does_not_want_to() {
    let never = Duration::from_secs(3600);
    for (faults, terminate) in [(&["--ignore-eof"][..], never), (&["--ignore-eof", "--ignore-term"], MOMENT)] {
        let bridge = spawn(but(fake(faults), |options| (options.drain, options.terminate) = (MOMENT, terminate)));
        let worker = pid(&bridge);
        within_bounds("the end of close()", move || bridge.close());
        assert!(!exists(worker), "it must be reaped");
    }
}

#[test]
fn dropping_the_bridge_kills_and_reaps_and_ends_every_call() {
    let grandchild = count_file();
    let mut faults = vec!["--latency=3600", "--ignore-eof", "--ignore-term"];
    if cfg!(unix) {
        faults.extend(["--grandchild", path(&grandchild)]); // a process of Windows is killed without its children
    }
    let bridge = spawn(but(fake(&faults), |options| options.drain = Duration::from_secs(3600)));
    let worker = pid(&bridge);
    let call = bridge.submit(vec!["never".into()], Parameters::new()).expect("room");
    within_bounds("the end of drop()", move || drop(bridge));
    assert!(!exists(worker), "it must be reaped");
    assert_eq!(call.wait().expect_err("closed").kind(), "closed");
    wait_until("the grandchild is gone, too", || cfg!(windows) || !is_running(pid_in(&grandchild)));
}

#[test]
#[cfg_attr(windows, ignore = "a process of Windows is killed without its children")]
fn what_a_dead_worker_has_left_behind_does_not_hold_up_the_next() {
    let grandchild = count_file();
    let bridge = spawn(impatient(fake_at_first(&["--kill-after=0", "--grandchild", path(&grandchild)])));
    assert_right(&bridge, "its pipes are still open");
    wait_until("the grandchild is gone", || !is_running(pid_in(&grandchild)));
}

#[test]
fn options_at_their_ends_have_a_meaning_or_are_refused() {
    let all = |duration: Duration| {
        but(fake(&[]), |options| {
            for each in [
                &mut options.start_timeout,
                &mut options.request_timeout,
                &mut options.restart_forgive,
                &mut options.backoff_initial,
                &mut options.backoff_max,
                &mut options.half_open_initial,
                &mut options.half_open_max,
                &mut options.ping_every,
                &mut options.pong_timeout,
                &mut options.stuck_after,
                &mut options.drain,
                &mut options.terminate,
            ] {
                *each = duration;
            }
        })
    };
    let bridge = spawn(all(Duration::MAX));
    let never = Parameters::new().timeout(Duration::MAX);
    assert_eq!(bridge.embed_with(&["patient"], never).expect("vectors").vectors, vector("patient"));
    assert!(kill(pid(&bridge)));
    wait_until("a century's back-off", || bridge.stats().state == State::BackingOff);
    within_bounds("the end of close()", move || bridge.close());

    let at_once = spawn(but(all(Duration::ZERO), |options| {
        options.restart_budget = 1.0;
        (options.ping_every, options.pong_timeout, options.half_open_initial) = (MOMENT, MOMENT, MOMENT);
    }));
    assert_eq!(at_once.embed(&["hasty"]).expect_err("no time to start").kind(), "circuit_open");
    within_bounds("the end of drop()", move || drop(at_once));

    let zero_queue = spawn(but(fake(&[]), |options| (options.max_queued, options.max_queued_bytes) = (0, 0)));
    assert_right(&zero_queue, "alone");
    for refused in [
        but(fake(&[]), |options| options.restart_budget = f64::NAN),
        but(fake(&[]), |options| options.ping_every = Duration::ZERO),
        but(fake(&[]), |options| options.pong_timeout = Duration::ZERO),
        but(fake(&[]), |options| options.half_open_initial = Duration::ZERO),
        Options::with_command(Vec::<String>::new()),
    ] {
        assert_eq!(EmbedBridge::spawn(refused).expect_err("no meaning").kind(), "invalid_argument");
    }
}
