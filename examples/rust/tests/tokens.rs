//! Tokens of texts, and vectors of fewer bits.

mod support;

use embed_bridge::{byte_ranges, Parameters, Precision};
use support::{count_file, fake, path, spawn};

#[test]
fn a_large_call_is_cut_and_joined_in_order_and_survives_a_death() {
    let file = count_file();
    let bridge = spawn(fake(&["--max-inputs=700", "--kill-after=2", "--processes=1", "--count-file", path(&file)]));
    let mut inputs: Vec<String> = (0..5000).map(|number| "é ".repeat(number % 7)).collect();
    for long in [3, 4000] {
        inputs[long] = "word ".repeat(600);
    }
    let found = bridge.tokenize_with(&inputs, Parameters::document().offsets(true)).expect("tokens");
    assert_eq!((found.tokens.len(), found.offsets.len()), (5000, 5000));
    assert_eq!((found.truncated, found.model.as_str()), (vec![3, 4000], "fake-model"));
    for (index, (tokens, text)) in found.tokens.iter().zip(&inputs).enumerate() {
        assert_eq!(usize::try_from(*tokens).expect("few"), 2 + text.split_whitespace().count(), "{index}");
    }
    let words = byte_ranges(&inputs[9], &found.offsets[9]);
    assert!(words.iter().all(|word| &inputs[9][word.clone()] == "é") && words.len() == 2, "{words:?}");
    assert_eq!(bridge.stats().restarts, 1);
    assert!(bridge.tokenize(&["a"]).expect("tokens").offsets.is_empty(), "nobody asked for them");
    assert!(bridge.tokenize::<&str>(&[]).expect("nothing").tokens.is_empty());
}

#[test]
fn what_means_nothing_to_a_call_is_refused() {
    let bridge = spawn(fake(&[]));
    for parameters in [
        Parameters::new().dimensions(3),
        Parameters::new().normalize(true),
        Parameters::new().precision(Precision::Float16),
    ] {
        let error = bridge.tokenize_with(&["a"], parameters).expect_err("vectors only");
        assert_eq!(error.kind(), "invalid_argument");
    }
    let error = bridge.embed_with(&["a"], Parameters::new().offsets(true)).expect_err("tokens only");
    assert_eq!(error.kind(), "invalid_argument");
}

#[test]
fn vectors_come_at_the_precision_that_is_asked_for() {
    let bridge = spawn(fake(&["--max-inputs=30"]));
    let texts: Vec<String> = (0..100).map(|number| format!("text {number}")).collect();
    let embed =
        |precision| bridge.embed_with(&texts, Parameters::query().dimensions(7).precision(precision)).expect("vectors");
    let (exact, halves, signs) = (embed(Precision::Float32), embed(Precision::Float16), embed(Precision::Ubinary));
    assert_eq!((halves.dimension, halves.float16.len(), halves.vectors.len()), (7, 700, 0));
    assert_eq!((signs.dimension, signs.ubinary.len(), signs.len()), (7, 100, 100));
    for (index, row) in exact.rows().enumerate() {
        for (column, number) in row.iter().enumerate() {
            assert_eq!(signs.ubinary_row(index)[0] >> (7 - column) & 1 == 1, *number > 0.0);
            assert_eq!(halves.float16_row(index)[column] >> 15 == 1, *number < 0.0);
        }
    }
}
