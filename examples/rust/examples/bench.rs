//! `cargo run --release --example bench -- FILE [SINGLES] [-- WORKER COMMAND…]`
//!
//! For every line of standard input: embed all texts of FILE in one call, then SINGLES texts (100) one by one, and print
//! one JSON object. So two clients can be measured in turns, each with its worker running.

use std::env;
use std::error::Error;
use std::fs;
use std::io;
use std::time::Instant;

use embed_bridge::{EmbedBridge, Options};
use serde_json::{json, Value};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let mut parts = arguments.splitn(2, |argument| argument == "--");
    let (given, worker) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let [file, singles @ ..] = given else { return Err("usage: bench FILE [SINGLES] [-- WORKER COMMAND…]".into()) };
    let singles: usize = singles.first().map_or(Ok(100), |count| count.parse())?;
    let content = fs::read_to_string(file)?;
    let texts: Vec<&str> = content.lines().collect();

    let options = if worker.is_empty() { Options::default() } else { Options::with_command(worker) };
    let bridge = EmbedBridge::spawn(options)?;
    bridge.embed(&texts[..texts.len().min(64)])?; // warm up
    for line in io::stdin().lines() {
        line?;
        println!("{}", measure(&bridge, &texts, singles)?);
    }
    bridge.close();
    Ok(())
}

fn measure(bridge: &EmbedBridge, texts: &[&str], singles: usize) -> Result<Value, embed_bridge::Error> {
    let started = Instant::now();
    bridge.embed(texts)?;
    #[allow(clippy::cast_precision_loss)] // of a figure
    let texts_per_s = texts.len() as f64 / started.elapsed().as_secs_f64();

    let mut latencies_ms = Vec::with_capacity(singles);
    for text in texts.iter().cycle().take(singles) {
        let started = Instant::now();
        bridge.embed(&[text])?;
        latencies_ms.push(started.elapsed().as_secs_f64() * 1e3);
    }
    latencies_ms.sort_by(f64::total_cmp);
    let percentile = |percent: usize| latencies_ms.get(latencies_ms.len() * percent / 100);
    Ok(json!({
        "texts": texts.len(), "texts_per_s": texts_per_s,
        "singles": singles, "single_p50_ms": percentile(50), "single_p95_ms": percentile(95),
    }))
}
