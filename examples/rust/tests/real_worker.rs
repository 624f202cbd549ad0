//! The bridge with the real worker and the default model.

mod support;

use embed_bridge::Embeddings;
use support::{but, exists, kill, pid, real, spawn};

fn cosine(embeddings: &Embeddings, left: usize, right: usize) -> f32 {
    embeddings.row(left).iter().zip(embeddings.row(right)).map(|(left, right)| left * right).sum()
}

#[test]
fn vectors_mean_something_and_survive_a_kill() {
    let bridge = spawn(but(real(), |options| options.forward_stderr = true));
    let info = bridge.info().expect("a ready worker");
    assert_eq!((info.protocol, info.dimension, info.model.as_str()), (1, 384, "all-MiniLM-L6-v2"));
    let texts = ["A cat sits on the mat.", "A kitten rests on a rug.", "The central bank raised interest rates.", ""];
    let embeddings = bridge.embed(&texts).expect("vectors");
    assert_eq!((embeddings.len(), embeddings.dimension), (4, 384));
    assert_eq!((&embeddings.fingerprint, &embeddings.model), (&info.fingerprint, &info.model));
    for index in 0..texts.len() {
        assert!((cosine(&embeddings, index, index) - 1.0).abs() < 1e-5, "of unit length");
    }
    assert!(cosine(&embeddings, 0, 1) > cosine(&embeddings, 0, 2) + 0.3, "cats are not banks");

    assert!(kill(pid(&bridge)));
    let again = bridge.embed(&texts).expect("vectors of the next worker");
    assert_eq!(bridge.stats().restarts, 1);
    let largest = embeddings.vectors.iter().zip(&again.vectors).map(|(one, two)| (one - two).abs()).fold(0.0, f32::max);
    assert!(largest < 1e-6, "{largest}");

    let worker = pid(&bridge);
    bridge.close();
    assert!(!exists(worker));
}
