//! Everything at once: many threads, calls of all sizes, time-outs, withdrawn calls, guilty texts and killed workers.

mod support;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use embed_bridge::{EmbedBridge, Embeddings, Error, Parameters};
use support::{but, fake, kill, spawn, vector, wait_until, WAIT};

const THREADS: usize = 6;
const CALLS_EACH: usize = 40;
const KILLS: usize = 8;

/// Numbers that look random and are the same in every run (Marsaglia's xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).expect("less than the limit")
    }
}

fn check(outcome: Result<Embeddings, Error>, texts: &[String], may_be_late: bool, is_withdrawn: bool) {
    let (embeddings, blamed) = match outcome {
        Ok(embeddings) => (Some(embeddings), Vec::new()),
        Err(Error::PoisonedInput { indexes, others, .. }) => (others.map(|others| *others), indexes),
        Err(Error::Timeout(_)) if may_be_late => return,
        Err(Error::Cancelled) if is_withdrawn => return,
        Err(error) => panic!("{error:?}"),
    };
    for index in &blamed {
        assert!(texts[*index].contains("bad"), "an innocent text is blamed");
    }
    let others = texts.iter().enumerate().filter(|(index, _)| !blamed.contains(index)).map(|(_, text)| text);
    let rows = embeddings.iter().flat_map(Embeddings::rows);
    assert!(rows.map(<[f32]>::to_vec).eq(others.map(|text| vector(text))), "each text has its own vector");
}

fn call(bridge: &EmbedBridge, numbers: &mut Numbers) {
    let count = [1, 1, 1, 7, 40][numbers.below(5)];
    let word = |is_bad: bool| if is_bad { "bad" } else { "good" };
    let texts: Vec<String> =
        (0..count).map(|_| format!("{} {}", word(numbers.below(150) == 0), numbers.below(20))).collect();
    let (may_be_late, is_withdrawn) = (numbers.below(8) == 0, numbers.below(8) == 0);
    let parameters = Parameters::new().timeout(if may_be_late { Duration::from_millis(30) } else { 4 * WAIT });
    let call = bridge.embed_async(texts.clone(), parameters);
    if is_withdrawn {
        call.canceller().cancel();
    }
    check(call.wait(), &texts, may_be_late, is_withdrawn);
}

#[test]
fn nothing_is_lost_mixed_up_or_left_over() {
    let options = but(fake(&["--poison=bad", "--latency=0.001", "--max-inputs=16"]), |options| {
        options.restart_budget = f64::INFINITY;
    });
    let bridge = spawn(options);
    let (ended, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    vector("the worker that knows what is right is there");
    thread::scope(|scope| {
        let killer = scope.spawn(|| {
            for round in 1..=KILLS {
                wait_until("calls end", || {
                    ended.load(Ordering::SeqCst) >= round * THREADS * CALLS_EACH / (KILLS + 2)
                        || is_over.load(Ordering::SeqCst)
                });
                bridge.stats().pid.map(kill);
            }
        });
        let callers: Vec<_> = (1..=THREADS as u64)
            .map(|seed| {
                let (bridge, ended) = (&bridge, &ended);
                scope.spawn(move || {
                    let mut numbers = Numbers(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
                    for _ in 0..CALLS_EACH {
                        call(bridge, &mut numbers);
                        ended.fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        let outcomes: Vec<_> = callers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        is_over.store(true, Ordering::SeqCst);
        killer.join().expect("no panic");
        assert!(outcomes.iter().all(Result::is_ok));
    });
    wait_until("nothing is left over", || {
        let stats = bridge.stats();
        (stats.in_flight, stats.queued) == (0, 0)
    });
    assert!(bridge.stats().restarts > 0);
    check(bridge.embed(&["good"]), &["good".into()], false, false);
}
