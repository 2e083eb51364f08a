//! The regular expressions of the API models: all of them compile, match whole texts, and cannot be made slow.

use std::path::Path;
use std::time::{Duration, Instant};

use haar_api::schema::Pattern;

/// Every pattern of every model, with its model and shape.
fn patterns() -> Vec<(String, Pattern)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
    let mut patterns = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        for (name, shape) in haar_api_codegen::read_model(&path).unwrap().shapes {
            if let Some(source) = shape.checked_pattern() {
                // Patterns are static in generated code.
                let pattern = Pattern::new(source.clone().leak());
                patterns.push((format!("{}: {name}: {source}", path.display()), pattern));
            }
        }
    }
    assert!(patterns.len() > 300, "only {} patterns", patterns.len());
    patterns
}

#[test]
fn every_pattern_compiles_and_ends() {
    let long = ["a".repeat(2000), "a-".repeat(1000), "a/b:".repeat(500), " ".repeat(2000)];
    for (name, pattern) in patterns() {
        for text in
            ["", "a", "arn:aws:iam::123456789012:role/x"].into_iter().chain(long.iter().map(String::as_str))
        {
            let begin = Instant::now();
            pattern.matches(text).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(begin.elapsed() < Duration::from_secs(5), "{name}");
        }
    }
}

#[test]
fn hyphens_after_classes_are_hyphens() {
    static WORDS: Pattern = Pattern::new(r"[\w-_]+");
    assert_eq!((WORDS.matches("a-b_c"), WORDS.matches("a b")), (Ok(true), Ok(false)));
    static RANGE: Pattern = Pattern::new(r"[a-c\]-]+\w-x");
    assert_eq!((RANGE.matches("ab]-a-x"), RANGE.matches("da-x")), (Ok(true), Ok(false)));
}

#[test]
fn whole_texts_are_matched() {
    static LETTERS: Pattern = Pattern::new("[a-z]+|[0-9]+");
    for (text, matches) in [
        ("abc", true),
        ("12", true),
        ("a1", false),
        ("1a", false),
        ("abc\n", false),
        ("\nabc", false),
        ("", false),
    ] {
        assert_eq!(LETTERS.matches(text), Ok(matches), "{text:?}");
    }
    static SLOW: Pattern = Pattern::new("(?=(a+)+b)a*");
    assert_eq!(SLOW.matches(&"a".repeat(5000)), Ok(false));
    static BROKEN: Pattern = Pattern::new("(");
    assert_eq!(BROKEN.matches("").unwrap_err().code, "InternalError");
}
