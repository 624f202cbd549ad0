//! fastembed-rs on a local model, as a contestant of `python -m tests.benchmarks.compare`: the line protocol of
//! `tests/benchmarks/peers/serve.py`. The variant is the batch size.

use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

use base64::Engine;
use fastembed::{InitOptionsUserDefined, Pooling, TextEmbedding, TokenizerFiles, UserDefinedEmbeddingModel};
use serde_json::{json, Value};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let settings: Value = serde_json::from_str(&std::env::args().nth(1).ok_or("no settings")?)?;
    let batch: usize = settings["variant"].as_str().ok_or("no variant")?.parse()?;
    let mut model = load(&settings)?;
    let mut answers = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let asked: Value = serde_json::from_str(&line?)?;
        let inputs: Vec<&str> = asked["inputs"]
            .as_array()
            .ok_or("no inputs")?
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let pieces: Vec<&[&str]> = match asked["one_by_one"] == true {
            true => inputs.chunks(1).collect(),
            false => vec![&inputs[..]],
        };
        let (mut seconds, mut vectors) = (Vec::new(), Vec::new());
        for piece in pieces {
            let started = Instant::now();
            let embedded = model.embed(piece, Some(batch))?;
            seconds.push(started.elapsed().as_secs_f64());
            vectors.extend(embedded);
        }
        let mut answer = json!({"seconds": seconds, "versions": {"fastembed-rs": env!("FASTEMBED_VERSION")}});
        if asked["vectors"] == true {
            let bytes: Vec<u8> = vectors.iter().flatten().flat_map(|number| number.to_le_bytes()).collect();
            answer["vectors"] = base64::engine::general_purpose::STANDARD.encode(bytes).into();
        }
        writeln!(answers, "{answer}")?;
        answers.flush()?;
    }
    Ok(())
}

fn load(settings: &Value) -> Result<TextEmbedding, Failure> {
    let folder = Path::new(settings["model"].as_str().ok_or("no model")?);
    let read = |file: &str| std::fs::read(folder.join(file));
    let tokenizer = TokenizerFiles {
        tokenizer_file: read("tokenizer.json")?,
        config_file: read("config.json")?,
        special_tokens_map_file: read("special_tokens_map.json")?,
        tokenizer_config_file: read("tokenizer_config.json")?,
    };
    let pooling = match settings["pooling"] == "cls" {
        true => Pooling::Cls,
        false => Pooling::Mean,
    };
    let model = UserDefinedEmbeddingModel::new(read("onnx/model.onnx")?, tokenizer).with_pooling(pooling);
    let threads = settings["threads"].as_u64().ok_or("no threads")? as usize;
    let options = InitOptionsUserDefined::new().with_max_length(256).with_intra_threads(threads);
    Ok(TextEmbedding::try_new_from_user_defined(model, options)?)
}
