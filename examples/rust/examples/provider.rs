//! An embedding provider as a database defines one: async, a model for each call, and the fingerprint beside the vectors.
//!
//! `cargo run --example provider -- WORKER COMMAND…` embeds two texts with it.

use std::env;
use std::sync::Arc;

use embed_bridge::{EmbedBridge, Error, Options, Parameters};

/// Several texts for one model.
struct BatchRequest {
    model: String,
    inputs: Vec<String>,
    normalize: bool,
}

/// The vectors of a request. A collection must refuse vectors of another fingerprint than its own.
#[derive(Debug)]
struct BatchResponse {
    model: String,
    fingerprint: String,
    embeddings: Vec<Vec<f32>>,
    total_tokens: u64,
}

#[derive(Debug)]
struct ModelInfo {
    model: String,
    dimension: usize,
    max_tokens: Option<u64>,
}

/// The provider: clones share one worker.
#[derive(Clone)]
struct Provider(Arc<EmbedBridge>);

impl Provider {
    async fn embed_batch(&self, request: BatchRequest) -> Result<BatchResponse, Error> {
        self.0.load_model_async(&request.model).await?; // at once, where it is loaded
        let parameters = Parameters::new().model(request.model).normalize(request.normalize);
        let embeddings = self.0.embed_async(request.inputs, parameters).await?;
        Ok(BatchResponse {
            embeddings: embeddings.rows().map(<[f32]>::to_vec).collect(),
            total_tokens: embeddings.tokens.iter().map(|&tokens| u64::from(tokens)).sum(),
            model: embeddings.model,
            fingerprint: embeddings.fingerprint,
        })
    }

    async fn model_info(&self, model: &str) -> Result<ModelInfo, Error> {
        let info = self.0.load_model_async(model).await?;
        Ok(ModelInfo { model: info.model, dimension: info.dimension, max_tokens: info.max_tokens })
    }

    async fn health_check(&self) -> Result<(), Error> {
        self.0.ping_async().await
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let command: Vec<_> = env::args_os().skip(1).collect();
    let options = if command.is_empty() { Options::default() } else { Options::with_command(command) };
    let provider = Provider(Arc::new(EmbedBridge::spawn(options)?));
    provider.health_check().await?;
    let model = provider.0.info_async().await?.model;
    let ModelInfo { model, dimension, max_tokens } = provider.model_info(&model).await?;
    println!("{model}: {dimension} dimensions, at most {max_tokens:?} tokens");
    let inputs = vec!["one text".to_owned(), "another text".to_owned()];
    let response = provider.embed_batch(BatchRequest { model, inputs, normalize: true }).await?;
    let BatchResponse { model, fingerprint, embeddings, total_tokens } = response;
    println!("{} vectors of {model} ({fingerprint}), {total_tokens} tokens", embeddings.len());
    tokio::task::spawn_blocking(move || provider.0.close()).await?;
    Ok(())
}
