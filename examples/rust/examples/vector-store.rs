//! A vector database in miniature: a text file in, one text a line; cosine search over its embeddings.

use std::collections::VecDeque;
use std::env;
use std::error::Error as StdError;
use std::fs;
use std::io::{self, BufRead, IsTerminal, Write};
use std::iter;
use std::process::ExitCode;
use std::time::Instant;

use embed_bridge::{EmbedBridge, Embeddings, Error, Options, Parameters, Pending};

const USAGE: &str = "\
usage: vector-store FILE [--query TEXT]… [--top N] [-- WORKER COMMAND…]

Embeds FILE, one text a line, and prints the closest texts to each query: similarity, line number, text.
Without --query it reads queries from standard input, one a line. The default worker is `embed-worker`.

exit status: 0 everything was answered, 1 the file or the worker failed, 2 usage";

const BLOCK_TEXTS: usize = 256;
const BLOCKS_IN_FLIGHT: usize = 16;

struct Arguments {
    file: String,
    queries: Vec<String>,
    top: usize,
    worker: Vec<String>,
}

fn main() -> ExitCode {
    let arguments = match parse(env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(why) => {
            eprintln!("vector-store: {why}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vector-store: {}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

/// Return an error and what is behind it.
fn chain(error: &dyn StdError) -> String {
    let causes = iter::successors(Some(error), |&error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn parse(mut given: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let (mut file, mut queries, mut top, mut worker) = (None, Vec::new(), 3, Vec::new());
    while let Some(argument) = given.next() {
        let mut value = || given.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--query" => queries.push(value()?),
            "--top" => top = value()?.parse().map_err(|_| "--top needs a number")?,
            "--" => worker = given.by_ref().collect(),
            option if option.starts_with('-') => return Err(format!("unknown option {option}")),
            _ if file.is_none() => file = Some(argument),
            _ => return Err(format!("one FILE is enough: {argument}")),
        }
    }
    Ok(Arguments { file: file.ok_or("no FILE")?, queries, top, worker })
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn StdError>> {
    let Arguments { file, queries, top, worker } = arguments;
    let text = fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
    let options = if worker.is_empty() { Options::default() } else { Options::with_command(worker) };
    let bridge = EmbedBridge::spawn(options)?;
    let started = Instant::now();
    let store = VectorStore::load(&bridge, text.lines().map(str::to_owned).collect())?;
    eprintln!(
        "{} texts in {:.1?}: {} dimensions, fingerprint {}",
        store.texts.len(),
        started.elapsed(),
        store.dimension,
        store.fingerprint
    );
    for query in queries {
        print(&store.search(&bridge, query, *top)?)?;
    }
    if queries.is_empty() {
        converse(&store, &bridge, *top)?;
    }
    bridge.close();
    Ok(())
}

/// Answer queries until the end of input. A query that fails does not end the conversation.
fn converse(store: &VectorStore, bridge: &EmbedBridge, top: usize) -> io::Result<()> {
    let prompt = || {
        if io::stdin().is_terminal() {
            eprint!("query> ");
        }
    };
    prompt();
    for query in io::stdin().lock().lines() {
        match store.search(bridge, &query?, top) {
            Ok(hits) => print(&hits)?,
            Err(error) => eprintln!("vector-store: {}", chain(&error)),
        }
        prompt();
    }
    Ok(())
}

fn print(hits: &[Hit<'_>]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    for hit in hits {
        writeln!(stdout, "{:.4}  {:>5}  {}", hit.similarity, hit.line, hit.text)?;
    }
    writeln!(stdout)?;
    stdout.flush()
}

/// Texts and their unit vectors, all of one vector space.
struct VectorStore {
    texts: Vec<String>,
    vectors: Vec<f32>, // row-major
    dimension: usize,
    fingerprint: String,
}

struct Hit<'a> {
    similarity: f32,
    line: usize,
    text: &'a str,
}

impl VectorStore {
    /// Embed the texts in blocks, some of them in flight at a time: memory is bounded, and the worker never idles.
    fn load(bridge: &EmbedBridge, texts: Vec<String>) -> Result<VectorStore, Error> {
        let info = bridge.info()?;
        let mut store =
            VectorStore { vectors: Vec::new(), dimension: info.dimension, fingerprint: info.fingerprint, texts };
        let mut vectors = Vec::with_capacity(store.texts.len() * store.dimension);
        let mut in_flight: VecDeque<Pending> = VecDeque::new();
        let mut blocks = store.texts.chunks(BLOCK_TEXTS);
        loop {
            while in_flight.len() < BLOCKS_IN_FLIGHT {
                let Some(block) = blocks.next() else { break };
                in_flight.push_back(bridge.submit(block.to_vec(), Parameters::document())?);
            }
            let Some(first) = in_flight.pop_front() else { break };
            vectors.extend(store.units(&first.wait()?));
        }
        store.vectors = vectors;
        Ok(store)
    }

    /// The vectors, scaled to unit length. The bridge vouches for the fingerprint for as long as it lives.
    fn units(&self, embeddings: &Embeddings) -> Vec<f32> {
        assert_eq!(embeddings.fingerprint, self.fingerprint, "two vector spaces must never be mixed");
        let unit = |row: &[f32]| {
            let norm = row.iter().map(|value| value * value).sum::<f32>().sqrt();
            row.iter().map(|value| value / norm).collect::<Vec<f32>>()
        };
        embeddings.rows().flat_map(unit).collect()
    }

    /// The `top` closest texts, the closest first.
    fn search(&self, bridge: &EmbedBridge, query: &str, top: usize) -> Result<Vec<Hit<'_>>, Error> {
        let query = self.units(&bridge.embed_query(&[query])?);
        let cosine = |row: &[f32]| row.iter().zip(&query).map(|(left, right)| left * right).sum();
        let rows = self.vectors.chunks_exact(self.dimension).map(cosine);
        let mut hits: Vec<Hit<'_>> =
            (1..).zip(&self.texts).zip(rows).map(|((line, text), similarity)| Hit { similarity, line, text }).collect();
        hits.sort_by(|left, right| right.similarity.total_cmp(&left.similarity));
        hits.truncate(top);
        Ok(hits)
    }
}
