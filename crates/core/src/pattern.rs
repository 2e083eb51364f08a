//! Texts with wildcards.

use std::mem;

/// A value with wildcards: `*` is zero or more characters, `?` zero or one, and `\` makes the character after it stand
/// for itself. Case counts. (EC2 User Guide, "Find your Amazon EC2 resources".)
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Form);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Form {
    /// What stands between the `*`s of a pattern without `?`; one piece if there is no `*`.
    Pieces(Vec<String>),
    /// Any pattern.
    Tokens(Vec<Token>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Char(char),
    /// `?`
    Optional,
    /// `*`
    Any,
}

impl Pattern {
    /// Whether a text has no wildcards and nothing that is escaped.
    #[must_use]
    pub fn is_plain(text: &str) -> bool {
        !text.bytes().any(|byte| matches!(byte, b'*' | b'?' | b'\\'))
    }

    /// Reads a pattern; every text is one. A `\` at the end stands for itself.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut tokens = Vec::with_capacity(text.len());
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            let token = match c {
                '*' => Token::Any,
                '?' => Token::Optional,
                '\\' => Token::Char(chars.next().unwrap_or('\\')),
                c => Token::Char(c),
            };
            // What follows `*` directly adds nothing to it.
            if tokens.last() != Some(&Token::Any) || matches!(token, Token::Char(_)) {
                tokens.push(token);
            }
        }
        if tokens.contains(&Token::Optional) {
            return Self(Form::Tokens(tokens));
        }
        let (mut pieces, mut piece) = (Vec::new(), String::new());
        for token in tokens {
            match token {
                Token::Char(c) => piece.push(c),
                _ => pieces.push(mem::take(&mut piece)),
            }
        }
        pieces.push(piece);
        Self(Form::Pieces(pieces))
    }

    /// The only text that matches, if there is only one.
    #[must_use]
    pub fn literal(&self) -> Option<&str> {
        match &self.0 {
            Form::Pieces(pieces) if pieces.len() == 1 => Some(&pieces[0]),
            _ => None,
        }
    }

    /// Whether the whole text matches. Takes at most time proportional to the product of both lengths.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        match &self.0 {
            Form::Pieces(pieces) => pieces_match(pieces, text),
            Form::Tokens(tokens) => tokens_match(tokens, text),
        }
    }
}

fn pieces_match(pieces: &[String], text: &str) -> bool {
    let [first, middle @ .., last] = pieces else {
        return pieces.first().is_some_and(|literal| literal == text);
    };
    let Some(rest) = text.strip_prefix(first.as_str()) else { return false };
    let Some(mut rest) = rest.strip_suffix(last.as_str()) else { return false };
    // The leftmost place of each piece leaves most for those after it.
    for piece in middle {
        let Some((_, after)) = rest.split_once(piece.as_str()) else { return false };
        rest = after;
    }
    true
}

fn tokens_match(tokens: &[Token], text: &str) -> bool {
    // Passes over tokens that need no character.
    let skip = |reach: &mut [bool]| {
        for (i, token) in tokens.iter().enumerate() {
            reach[i + 1] |= reach[i] && !matches!(token, Token::Char(_));
        }
    };
    // `reach[n]`: the first n tokens match what was read so far.
    let mut reach = vec![false; tokens.len() + 1];
    reach[0] = true;
    skip(&mut reach);
    for c in text.chars() {
        // Backwards, so that every step sees the state before this character.
        for (i, token) in tokens.iter().enumerate().rev() {
            reach[i + 1] = match token {
                Token::Char(own) => reach[i] && *own == c,
                Token::Optional => reach[i],
                // Either begins with this character, or goes on.
                Token::Any => reach[i] || reach[i + 1],
            };
        }
        reach[0] = false;
        if !reach.contains(&true) {
            return false;
        }
        skip(&mut reach);
    }
    reach[tokens.len()]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn wildcards() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*", "anything", true),
            ("a*c", "ac", true),
            ("a*c", "abbbc", true),
            ("a*c", "abbb", false),
            ("*b*", "abc", true),
            ("*b*", "acc", false),
            ("a?c", "abc", true),
            ("a?c", "ac", true),
            ("a?c", "abbc", false),
            ("???", "ab", true),
            ("???", "abcd", false),
            ("a*?", "abc", true),
            ("a*a", "a", false),
            ("ab*ba", "aba", false),
            ("a*b*b", "ab", false),
            ("*é*", "xéy", true),
            ("*?c", "bc", true),
            ("\\*amazon\\?\\\\", "*amazon?\\", true),
            ("\\*amazon\\?\\\\", "xamazon?\\", false),
            ("a\\", "a\\", true),
            ("\\a", "a", true),
            ("é?", "éß", true),
            ("A*", "a", false),
        ] {
            assert_eq!(Pattern::new(pattern).matches(text), expected, "{pattern} {text}");
        }
        assert_eq!(Pattern::new("a\\*b").literal(), Some("a*b"));
        assert_eq!(Pattern::new("a*b").literal(), None);
    }

    #[test]
    fn no_pattern_takes_long() {
        let pattern = Pattern::new(&"*a?".repeat(85));
        let text = "a".repeat(10_000) + "b";
        let start = std::time::Instant::now();
        assert!(pattern.matches(&text));
        assert!(!Pattern::new(&("*a".repeat(127) + "c")).matches(&text));
        assert!(start.elapsed().as_secs() < 5);
    }

    /// What a pattern means, by trying everything.
    fn by_definition(tokens: &[Token], text: &[char]) -> bool {
        match tokens {
            [] => text.is_empty(),
            [Token::Char(c), rest @ ..] => text.first() == Some(c) && by_definition(rest, &text[1..]),
            [Token::Optional, rest @ ..] => {
                by_definition(rest, text) || !text.is_empty() && by_definition(rest, &text[1..])
            }
            [Token::Any, rest @ ..] => (0..=text.len()).any(|n| by_definition(rest, &text[n..])),
        }
    }

    proptest! {
        #[test]
        fn matching_is_as_defined(pattern in "[ab*?]{0,8}", text in "[ab]{0,8}") {
            let tokens: Vec<Token> = pattern
                .chars()
                .map(|c| match c {
                    '*' => Token::Any,
                    '?' => Token::Optional,
                    c => Token::Char(c),
                })
                .collect();
            let text_chars: Vec<char> = text.chars().collect();
            prop_assert_eq!(Pattern::new(&pattern).matches(&text), by_definition(&tokens, &text_chars));
        }
    }
}
