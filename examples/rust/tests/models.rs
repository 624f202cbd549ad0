//! Further models of one worker, and the prompts of each: with the real worker and small models.

mod support;

use std::fs;
use std::path::Path;

use embed_bridge::{EmbedBridge, Error, ErrorCode, Options, Parameters};
use support::{but, fake, kill, path, pid, real_with, scratch, small_models, spawn, vector};

fn small(model: &str) -> Options {
    let folder = small_models();
    but(real_with(&["--model", model]), |options| {
        options.env.push(("EMBED_WORKER_MODELS".into(), folder.into()));
    })
}

fn vectors(bridge: &EmbedBridge, parameters: Parameters) -> Vec<f32> {
    bridge.embed_with(&["a text"], parameters).expect("vectors").vectors
}

fn code(error: &Error) -> &ErrorCode {
    let Error::Request { code, .. } = error else { panic!("{error:?}") };
    code
}

#[test]
fn further_models_are_loaded_once_and_again_by_the_next_worker() {
    let bridge = spawn(small("bert-mean"));
    let of_passages = || Parameters::new().model("e5-prefix");
    let error = bridge.embed_with(&["early"], of_passages()).expect_err("not loaded yet");
    assert_eq!(code(&error), &ErrorCode::ModelNotFound, "{error}");

    let info = bridge.load_model("e5-prefix").expect("it is there");
    assert_eq!(info.model, "e5-prefix");
    assert_ne!(info.fingerprint, bridge.info().expect("the default model").fingerprint);
    let embeddings = bridge.embed_with(&["a text"], of_passages()).expect("vectors");
    assert_eq!((&embeddings.model, &embeddings.fingerprint), (&info.model, &info.fingerprint));
    assert_eq!(embeddings.dimension, info.dimension);
    assert_ne!(embeddings.vectors, vectors(&bridge, Parameters::new()));

    assert!(kill(pid(&bridge)));
    assert_eq!(vectors(&bridge, of_passages()), embeddings.vectors, "the next worker has loaded it, too");
    assert_eq!(bridge.stats().restarts, 1);

    // Hosts name models as the hub does; only the part after the slash counts.
    assert_eq!(bridge.load_model("intfloat/e5-prefix").expect("the same").model, "e5-prefix");
    assert_eq!(vectors(&bridge, Parameters::new().model("intfloat/e5-prefix")), embeddings.vectors);

    let error = bridge.load_model("no such model").expect_err("nowhere");
    assert_eq!(code(&error), &ErrorCode::ModelNotFound, "{error}");
    assert_eq!(vectors(&bridge, of_passages()), embeddings.vectors, "the worker is none the worse for it");
}

#[test]
fn queries_and_documents_get_the_prompts_of_their_model_or_none() {
    let bridge = spawn(small("bert-mean"));
    for model in ["e5-prefix", "extra-prompt-options", "bert-cls-new"] {
        bridge.load_model(model).expect("it is there");
    }
    let named = |model, name| vectors(&bridge, Parameters::new().model(model).prompt_name(name));
    let bare = |model| vectors(&bridge, Parameters::new().model(model).prompt(""));
    let query = |model| vectors(&bridge, Parameters::query().model(model));
    let document = |model| vectors(&bridge, Parameters::document().model(model));

    assert_eq!(query("e5-prefix"), named("e5-prefix", "query"));
    assert_eq!(document("e5-prefix"), named("e5-prefix", "passage"), "it has no `document`");
    assert_eq!(document("extra-prompt-options"), named("extra-prompt-options", "document"));
    assert_eq!(document("bert-cls-new"), bare("bert-cls-new"), "its `document` is empty");
    assert_eq!((query("bert-mean"), document("bert-mean")), (bare("bert-mean"), bare("bert-mean")), "it has none");
    // A prompt that is named or given goes before the role.
    let given = vectors(&bridge, Parameters::query().model("e5-prefix").prompt(""));
    assert_eq!(given, bare("e5-prefix"));
    assert_ne!(given, query("e5-prefix"));
}

#[test]
fn a_model_without_a_prompt_for_queries_does_not_get_its_default_one_for_them() {
    let folder = scratch().join("no-query");
    let _ = fs::remove_dir_all(&folder);
    copy(&small_models().join("extra-prompt-options"), &folder);
    let config = r#"{"prompts": {"document": "Text: "}, "default_prompt_name": "document"}"#;
    fs::write(folder.join("config_sentence_transformers.json"), config).expect("a writable folder");
    let bridge = spawn(small(path(&folder)));
    let query = bridge.embed_query(&["a text"]).expect("vectors").vectors;
    assert_eq!(query, vectors(&bridge, Parameters::new().prompt("")));
    assert_ne!(query, vectors(&bridge, Parameters::new()), "what its folder says");
    assert_eq!(bridge.embed_documents(&["a text"]).expect("vectors").vectors, vectors(&bridge, Parameters::new()));
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a writable folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("a copy");
        }
    }
}

#[test]
fn calls_for_a_model_that_is_asked_for_wait_and_those_for_the_default_one_do_not() {
    let bridge = spawn(fake(&["--latency=0.01"]));
    let further = |text: &str| bridge.submit(vec![text.into()], Parameters::new().model("fake-model")).expect("room");
    let calls = ["one", "two", "three"].map(|text| (text, further(text)));
    assert_eq!(bridge.embed(&["default"]).expect("vectors").vectors, vector("default"));
    for (text, call) in calls {
        assert_eq!(call.wait().expect("vectors").vectors, vector(text));
    }
    drop(further("forgotten"));
    assert!(kill(pid(&bridge)));
    assert_eq!(further("afterwards").wait().expect("vectors").vectors, vector("afterwards"));
}

#[test]
fn a_further_model_that_changes_with_the_worker_is_refused_and_so_is_the_worker() {
    let file = support::count_file();
    let bridge = spawn(fake(&["--change-model", "--kill-after=1", "--count-file", path(&file)]));
    bridge.load_model("fake-model").expect("it is there");
    bridge.embed_with(&["first"], Parameters::new().model("fake-model")).expect("vectors");
    let error = bridge.embed_with(&["second"], Parameters::new().model("fake-model")).expect_err("another one");
    assert_eq!(error.kind(), "model_changed");
}
