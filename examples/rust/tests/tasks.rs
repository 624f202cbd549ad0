//! From an async runtime: calls are awaited, withdrawn by being dropped, and never block a task.

mod support;

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use embed_bridge::{EmbedBridge, Parameters};
use support::{but, fake, fake_at_first, kill, pid, spawn, vector, wait_until, within_bounds};
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tokio::time::timeout;

const CALLS: usize = 1_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_calls_are_awaited_at_once_and_each_gets_its_own_vectors() {
    let bridge = Arc::new(spawn(fake(&["--reorder=4"])));
    let at_once = Arc::new(Barrier::new(CALLS));
    let mut tasks = JoinSet::new();
    for number in 0..CALLS {
        let (bridge, at_once) = (Arc::clone(&bridge), Arc::clone(&at_once));
        tasks.spawn(async move {
            at_once.wait().await;
            let text = format!("text {}", number % 50);
            let embeddings = bridge.embed_async(vec![text.clone()], Parameters::new()).await.expect("vectors");
            (text, embeddings.vectors)
        });
    }
    let outcomes = timeout(support::WAIT, tasks.join_all()).await.expect("their ends");
    assert_eq!(outcomes.len(), CALLS);
    tokio::task::spawn_blocking(move || {
        assert!(outcomes.into_iter().all(|(text, found)| found == vector(&text)));
        bridge.close();
    })
    .await
    .expect("right vectors");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_awaits_withdraw_their_calls_and_hinder_nobody() {
    let bridge = Arc::new(spawn(but(fake(&["--latency=3600"]), |options| options.drain = Duration::ZERO)));
    bridge.info_async().await.expect("a ready worker");
    let mut tasks = JoinSet::new();
    for number in 0..CALLS {
        let bridge = Arc::clone(&bridge);
        tasks.spawn(async move {
            let call = bridge.embed_async(vec![format!("slow {number}")], Parameters::new());
            match number % 2 {
                0 => timeout(Duration::from_millis(10), call).await.map(drop).map_err(drop),
                _ => call.await.map(drop).map_err(drop), // until the task is aborted
            }
        });
    }
    let mut late = 0;
    while late < CALLS / 2 {
        let outcome = timeout(support::WAIT, tasks.join_next()).await.expect("its end").expect("a task");
        assert_eq!(outcome.expect("no panic"), Err(()), "an hour has not passed");
        late += 1;
    }
    tasks.shutdown().await;
    assert_eq!(bridge.stats().queued, 0, "what was not sent is forgotten");
    tokio::task::spawn_blocking(move || {
        wait_until("the worker dropped the rest", || bridge.stats().in_flight == 0);
        assert_eq!(bridge.stats().restarts, 0);
        drop(bridge);
    })
    .await
    .expect("all are withdrawn");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn awaited_calls_survive_a_killed_worker() {
    let bridge = Arc::new(spawn(fake(&["--latency=0.005"])));
    let mut tasks = JoinSet::new();
    for number in 0..100 {
        let bridge = Arc::clone(&bridge);
        tasks.spawn(async move { bridge.embed_async(vec![format!("text {}", number % 10)], Parameters::new()).await });
    }
    let worker = bridge.info_async().await.expect("a ready worker").pid.expect("its number");
    assert!(kill(worker));
    for outcome in timeout(support::WAIT, tasks.join_all()).await.expect("their ends") {
        outcome.expect("vectors");
    }
    timeout(support::WAIT, bridge.ping_async()).await.expect("a pong").expect("a worker");
    tokio::task::spawn_blocking(move || drop(bridge)).await.expect("it is gone");
}

#[tokio::test(flavor = "current_thread")]
async fn a_call_that_cannot_be_begun_says_so_to_who_awaits_it() {
    let bridge = spawn(fake(&[]));
    bridge.close();
    let outcome = bridge.embed_async(vec!["late".into()], Parameters::new()).await;
    assert_eq!(outcome.expect_err("closed").kind(), "closed");
    assert_eq!(bridge.info_async().await.expect_err("closed").kind(), "closed");
    assert_eq!(bridge.ping_async().await.expect_err("closed").kind(), "closed");
    assert_eq!(bridge.load_model_async("any").await.expect_err("closed").kind(), "closed");
}

/// Counts how often it is woken, and drops a bridge when it is.
struct DropsABridge {
    bridge: std::sync::Mutex<Option<EmbedBridge>>,
    woken: AtomicUsize,
}

impl Wake for DropsABridge {
    fn wake(self: Arc<Self>) {
        let bridge = self.bridge.lock().expect("no panic").take();
        drop(bridge); // as a runtime does that drops a task in the middle of waking it
        self.woken.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_task_that_drops_the_bridge_while_it_is_woken_hangs_no_thread() {
    let time_out = Parameters::new().timeout(Duration::from_millis(50));
    // Woken by the reader of an answer, by the supervisor after a time-out, and by the end of the worker.
    for (faults, parameters) in
        [(&[][..], Parameters::new()), (&["--latency=3600"], time_out), (&["--kill-after=0"], Parameters::new())]
    {
        let options = but(fake_at_first(faults), |options| options.replay = false);
        within_bounds("the end", move || {
            let bridge = spawn(options);
            pid(&bridge);
            let mut call = pin!(bridge.embed_async(vec!["text".into()], parameters));
            let drops = Arc::new(DropsABridge { bridge: Some(bridge).into(), woken: AtomicUsize::new(0) });
            let waker = Waker::from(Arc::clone(&drops));
            if call.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
                wait_until("it is woken", || drops.woken.load(Ordering::SeqCst) == 1);
            }
            assert!(call.poll(&mut Context::from_waker(&waker)).is_ready());
        });
    }
}
