//! Texts with wildcards and policy variables.

use std::borrow::Cow;

use crate::key::Key;

/// Gives the value of a variable, if the request has it.
pub(crate) trait Variables {
    fn variable(&self, key: &Key) -> Option<Cow<'_, str>>;
}

/// A text with wildcards (`*`: zero or more characters, `?`: one) and policy variables (IAM User Guide, "IAM policy
/// elements: Variables and tags").
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern {
    pieces: Vec<Piece>,
    variables: Vec<Variable>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    /// `*`
    Any,
    /// `*` that does not leave its segment of an ARN.
    AnyInSegment,
    /// `?`
    One,
    /// `?` that is no colon.
    OneInSegment,
    /// The value of `variables` at this index.
    Variable(usize),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Variable {
    key: Key,
    default: Option<Box<str>>,
}

/// A part of a text as it is written.
enum Token {
    Char(char),
    /// A character that stands for itself: `${*}`, `${?}`, `${$}`.
    Literal(char),
    Variable(Variable),
}

/// Splits a text into characters and, if there are any, variables. What is no well-formed variable stands for itself.
fn tokens(mut text: &str, variables: bool) -> Vec<Token> {
    let mut tokens = Vec::with_capacity(text.len());
    while let Some(c) = text.chars().next() {
        if variables
            && let Some(rest) = text.strip_prefix("${")
            && let Some((inside, rest)) = rest.split_once('}')
            && let Some(token) = variable(inside)
        {
            tokens.push(token);
            text = rest;
        } else {
            tokens.push(Token::Char(c));
            text = &text[c.len_utf8()..];
        }
    }
    tokens
}

/// What stands between `${` and `}`: `*`, `?`, `$`, a key, or a key, a comma and a default value in single quotes.
fn variable(inside: &str) -> Option<Token> {
    if let "*" | "?" | "$" = inside {
        return inside.chars().next().map(Token::Literal);
    }
    let (name, default) = match inside.split_once(',') {
        Some((name, default)) => (name, Some(default.trim().strip_prefix('\'')?.strip_suffix('\'')?)),
        None => (inside, None),
    };
    let is_key = name.contains(':') && !name.contains(|c: char| c.is_whitespace() || "${*?'".contains(c));
    is_key.then(|| Token::Variable(Variable { key: Key::new(name), default: default.map(Into::into) }))
}

impl Pattern {
    fn empty() -> Self {
        Self { pieces: Vec::new(), variables: Vec::new() }
    }

    fn push_char(&mut self, c: char) {
        if let Some(Piece::Text(text)) = self.pieces.last_mut() {
            text.push(c);
        } else {
            self.pieces.push(Piece::Text(c.into()));
        }
    }

    fn push_any(&mut self, piece: Piece) {
        if self.pieces.last() != Some(&piece) {
            self.pieces.push(piece);
        }
    }

    fn push_variable(&mut self, variable: Variable) {
        self.pieces.push(Piece::Variable(self.variables.len()));
        self.variables.push(variable);
    }

    fn push(&mut self, token: Token) {
        match token {
            Token::Char('*') => self.push_any(Piece::Any),
            Token::Char('?') => self.pieces.push(Piece::One),
            Token::Char(c) | Token::Literal(c) => self.push_char(c),
            Token::Variable(variable) => self.push_variable(variable),
        }
    }

    /// A text with wildcards.
    pub(crate) fn wild(text: &str, variables: bool) -> Self {
        let mut pattern = Self::empty();
        tokens(text, variables).into_iter().for_each(|token| pattern.push(token));
        pattern
    }

    /// A text without wildcards.
    pub(crate) fn exact(text: &str, variables: bool) -> Self {
        let mut pattern = Self::empty();
        for token in tokens(text, variables) {
            match token {
                Token::Char(c) => pattern.push_char(c),
                token => pattern.push(token),
            }
        }
        pattern
    }

    /// A name of actions, whose case does not count.
    pub(crate) fn action(text: &str) -> Self {
        Self::wild(&text.to_ascii_lowercase(), false)
    }

    /// An ARN of the `Resource` element (IAM User Guide, "IAM JSON policy elements: Resource").
    ///
    /// Before the fifth colon, wildcards match within a segment, except that a `*` at the end of a segment may go on
    /// beyond colons, and there are no variables. Segments that are missing at the end match everything, as IAM's messages
    /// complete them.
    pub(crate) fn resource(text: &str, variables: bool) -> Self {
        let mut pattern = Self::empty();
        let mut colons = 0;
        let mut rest = text;
        while colons < 5
            && let Some(c) = rest.chars().next()
        {
            rest = &rest[c.len_utf8()..];
            match c {
                '*' => {
                    rest = rest.trim_start_matches('*');
                    let last = rest.is_empty() || rest.starts_with(':');
                    pattern.push_any(if last { Piece::Any } else { Piece::AnyInSegment });
                }
                '?' => pattern.pieces.push(Piece::OneInSegment),
                c => {
                    colons += usize::from(c == ':');
                    pattern.push_char(c);
                }
            }
        }
        tokens(rest, variables).into_iter().for_each(|token| pattern.push(token));
        if text != "*" {
            for _ in colons..5 {
                pattern.push_char(':');
                pattern.push_any(Piece::Any);
            }
        }
        pattern
    }

    /// The keys of the variables.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.variables.iter().map(|variable| &variable.key)
    }

    /// Whether the whole text matches. Without a value for each variable, nothing does.
    ///
    /// Takes time at most proportional to the product of both lengths.
    pub(crate) fn matches(&self, text: &str, variables: &impl Variables) -> bool {
        match &*self.pieces {
            [Piece::Any] => true,
            [Piece::Text(own)] => own == text,
            // Most texts differ before the first variable, whose value need not be known then.
            [Piece::Text(first), ..] if !text.starts_with(first.as_str()) => false,
            pieces if self.variables.is_empty() => glob(pieces, &[], text),
            pieces => self.resolve(variables).is_some_and(|values| glob(pieces, &values, text)),
        }
    }

    /// Whether the whole text matches, in any case. For patterns without wildcards.
    pub(crate) fn equals_ignoring_case(&self, text: &str, variables: &impl Variables) -> bool {
        let Some(values) = self.resolve(variables) else { return false };
        let own = self.pieces.iter().flat_map(|piece| match piece {
            Piece::Variable(index) => values[*index].chars(),
            Piece::Text(text) => text.chars(),
            _ => "".chars(),
        });
        own.flat_map(char::to_lowercase).eq(text.chars().flat_map(char::to_lowercase))
    }

    /// Whether an action matches, for patterns of [`Pattern::action`].
    pub(crate) fn matches_action(&self, action: &LowerCase<'_>) -> bool {
        match &*self.pieces {
            [Piece::Any] => true,
            pieces => glob(pieces, &[], &action.0),
        }
    }

    /// The variables' values, or `None` if one has neither value nor default.
    fn resolve<'a>(&'a self, variables: &'a impl Variables) -> Option<Vec<Cow<'a, str>>> {
        self.variables
            .iter()
            .map(|Variable { key, default }| {
                variables.variable(key).or_else(|| default.as_deref().map(Cow::Borrowed))
            })
            .collect()
    }
}

/// A text in lower case, which is borrowed if it was.
pub(crate) struct LowerCase<'a>(Cow<'a, str>);

impl<'a> LowerCase<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self(if text.bytes().any(|b| b.is_ascii_uppercase()) {
            Cow::Owned(text.to_ascii_lowercase())
        } else {
            Cow::Borrowed(text)
        })
    }
}

/// A place to go back to: the piece after a wildcard, and how much of the text the wildcard has passed.
type Retry = Option<(usize, usize)>;

fn glob(pieces: &[Piece], values: &[Cow<'_, str>], text: &str) -> bool {
    let char_at = |at: usize| text[at..].chars().next();
    let (mut piece, mut at) = (0, 0);
    // Only the last wildcard of each kind needs to be tried again: the leftmost place for what stands before it leaves
    // most to what comes after, and what follows an `AnyInSegment` up to the next colon is bounded by that colon.
    let (mut any, mut in_segment): (Retry, Retry) = (None, None);
    loop {
        let step = match pieces.get(piece) {
            None if at == text.len() => return true,
            None => None,
            Some(Piece::Any) => {
                match &pieces[piece + 1..] {
                    [] => return true,
                    [Piece::Text(last)] => return text[at..].ends_with(last.as_str()),
                    _ => (any, in_segment) = (Some((piece + 1, at)), None),
                }
                Some(0)
            }
            Some(Piece::AnyInSegment) => {
                in_segment = Some((piece + 1, at));
                Some(0)
            }
            Some(Piece::Text(own)) => text[at..].starts_with(own.as_str()).then_some(own.len()),
            Some(Piece::Variable(index)) => {
                let value = &values[*index];
                text[at..].starts_with(&**value).then_some(value.len())
            }
            Some(Piece::One) => char_at(at).map(char::len_utf8),
            Some(Piece::OneInSegment) => char_at(at).filter(|c| *c != ':').map(char::len_utf8),
        };
        if let Some(length) = step {
            (piece, at) = (piece + 1, at + length);
        } else if let Some((next, passed)) = in_segment
            && let Some(c) = char_at(passed).filter(|c| *c != ':')
        {
            (piece, at) = (next, passed + c.len_utf8());
            in_segment = Some((piece, at));
        } else if let Some((next, passed)) = any
            && let Some(c) = char_at(passed)
        {
            (piece, at) = (next, passed + c.len_utf8());
            (any, in_segment) = (Some((piece, at)), None);
        } else {
            return false;
        }
    }
}

/// An ARN of the ARN condition operators: "each of the six colon-delimited components of the ARN is checked separately and
/// each can include" wildcards (IAM User Guide, "IAM JSON policy elements: Condition operators").
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ArnPattern(Vec<Pattern>);

impl ArnPattern {
    pub(crate) fn new(text: &str, variables: bool) -> Self {
        let mut components = vec![Pattern::empty()];
        for token in tokens(text, variables) {
            match (token, components.len()) {
                (Token::Char(':'), ..6) => components.push(Pattern::empty()),
                (token, last) => components[last - 1].push(token),
            }
        }
        Self(components)
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.0.iter().flat_map(Pattern::keys)
    }

    pub(crate) fn matches(&self, arn: &str, variables: &impl Variables) -> bool {
        let mut components = arn.splitn(6, ':');
        let all = self.0.iter().all(|own| components.next().is_some_and(|text| own.matches(text, variables)));
        all && components.next().is_none() && arn.starts_with("arn:")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Variables with fixed values.
    pub(crate) struct Fixed(pub &'static [(&'static str, &'static str)]);

    impl Variables for Fixed {
        fn variable(&self, key: &Key) -> Option<Cow<'_, str>> {
            self.0.iter().find(|(name, _)| key.lower() == *name).map(|(_, value)| Cow::Borrowed(*value))
        }
    }

    const NONE: Fixed = Fixed(&[]);

    #[test]
    fn wildcards() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("a*c", "ac", true),
            ("a*c", "abb", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("a?c", "aéc", true),
            ("*?c", "bc", true),
            ("*ab*ba", "aba", false),
            ("a*b*b", "ab", false),
            ("*é*", "xéy", true),
            ("a**", "a", true),
            ("[a]", "a", false),
            ("A", "a", false),
        ] {
            assert_eq!(Pattern::wild(pattern, true).matches(text, &NONE), expected, "{pattern} {text}");
        }
        for (pattern, text, expected) in [
            ("EC2:Describe*", "ec2:DescribeInstances", true),
            ("ec2:describeinstances", "EC2:DescribeInstances", true),
            ("ec2:Describe?", "ec2:DescribeInstances", false),
            ("*", "ec2:DescribeInstances", true),
            ("*:DescribeInstances", "ec2:DescribeInstances", true),
        ] {
            let action = LowerCase::new(text);
            assert_eq!(Pattern::action(pattern).matches_action(&action), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn variables() {
        let variables = Fixed(&[("aws:username", "Bob"), ("aws:principaltag/a", "*"), ("aws:empty", "")]);
        for (pattern, text, expected) in [
            ("home/${aws:username}/*", "home/Bob/x", true),
            ("home/${AWS:UserName}/*", "home/bob/x", false),
            ("${aws:username}${aws:username}", "BobBob", true),
            // A wildcard in a value is a character.
            ("${aws:PrincipalTag/a}", "x", false),
            ("${aws:PrincipalTag/a}", "*", true),
            ("${aws:userid}", "", false),
            ("${aws:userid}", "${aws:userid}", false),
            ("${aws:userid, 'anonymous'}", "anonymous", true),
            ("${aws:userid,'anonymous'}", "anonymous", true),
            ("${aws:userid, ''}x", "x", true),
            ("${aws:username, 'anonymous'}", "anonymous", false),
            ("${*}${?}${$}", "*?$", true),
            ("${*}", "x", false),
            ("${$}{aws:username}", "${aws:username}", true),
            // Not variables.
            ("${", "${", true),
            ("${}", "${}", true),
            ("${name}", "${name}", true),
            ("${aws:user name}", "${aws:user name}", true),
            ("${aws:userid, x}", "${aws:userid, x}", true),
            ("$aws:username", "$aws:username", true),
        ] {
            assert_eq!(Pattern::wild(pattern, true).matches(text, &variables), expected, "{pattern} {text}");
        }
        let literal = Pattern::wild("${aws:username}", false);
        assert!(literal.matches("${aws:username}", &variables) && !literal.matches("Bob", &variables));
        let exact = Pattern::exact("*/${aws:username}", true);
        assert!(exact.matches("*/Bob", &variables) && !exact.matches("x/Bob", &variables));
        assert!(
            exact.equals_ignoring_case("*/BOB", &variables)
                && !exact.equals_ignoring_case("*/Bo", &variables)
        );
        assert!(!Pattern::exact("${aws:userid}", true).equals_ignoring_case("", &variables));
    }

    #[test]
    fn resources() {
        let variables = Fixed(&[("aws:username", "Bob")]);
        for (pattern, arn, expected) in [
            ("*", "*", true),
            ("*", "arn:aws:s3:::b", true),
            ("arn:aws:s3:::*", "*", false),
            ("arn:aws:s3:::b/*", "arn:aws:s3:::b/x/y", true),
            ("arn:aws:s3:::b/*", "arn:aws:s3:::b", false),
            ("arn:aws:ec2:*:*:instance/*", "arn:aws:ec2:eu-central-1:123456789012:instance/i-1", true),
            ("arn:aws:ec2:*:*:instance/*", "arn:aws:ec2:eu-central-1:123456789012:volume/v-1", false),
            ("arn:aws:ec2:eu-*-1:*:instance/*", "arn:aws:ec2:eu-central-1:1:instance/i", true),
            ("arn:aws:ec2:eu-*-1:*:instance/*", "arn:aws:ec2:eu-west:x-1:1:instance/i", false),
            ("arn:aws:ec2:eu-?:1:i", "arn:aws:ec2:eu-w:1:i", true),
            ("arn:aws:ec2:eu?1:i:x", "arn:aws:ec2:eu:1:i:x", false),
            // A `*` at the end of a segment goes on beyond the colon.
            ("arn:aws:ec2:*", "arn:aws:ec2:eu-central-1:123456789012:instance/i-1", true),
            ("arn:aws:ec2:*:i/x", "arn:aws:ec2:eu-central-1:123456789012:i/x", false),
            ("arn:aws:x:*:1:r", "arn:aws:x:eu:2:s:1:r", true),
            // After the fifth colon, colons are like other characters.
            ("arn:aws:logs:r:1:log-group:*x", "arn:aws:logs:r:1:log-group:a:b:x", true),
            ("arn:aws:logs:r:1:log-group?a", "arn:aws:logs:r:1:log-group:a", true),
            // What is missing matches everything.
            ("arn:aws:s3", "arn:aws:s3:::b", true),
            ("arn:aws:s3", "arn:aws:sqs:r:1:q", false),
            ("arn:aws:iam::1:user/${aws:username}", "arn:aws:iam::1:user/Bob", true),
            // Variables are only known after the fifth colon.
            ("arn:aws:iam::${aws:username}:user/x", "arn:aws:iam::Bob:user/x", false),
        ] {
            assert_eq!(
                Pattern::resource(pattern, true).matches(arn, &variables),
                expected,
                "{pattern} {arn}"
            );
        }
    }

    #[test]
    fn arns() {
        let variables = Fixed(&[("aws:username", "Bob"), ("aws:colon", "a:b")]);
        for (pattern, arn, expected) in [
            ("arn:aws:s3:::b", "arn:aws:s3:::b", true),
            ("arn:*:s3:*:*:*", "arn:aws:s3:::b:c/d", true),
            ("arn:aws:iam::1:user/${aws:username}", "arn:aws:iam::1:user/Bob", true),
            ("arn:aws:iam::1:user/${aws:colon}", "arn:aws:iam::1:user/a:b", true),
            ("arn:aws:iam:*", "arn:aws:iam::1:user/Bob", false),
            ("*", "no arn", false),
            ("*:*:*:*:*:*", "a:b:c:d:e:f", false),
        ] {
            assert_eq!(ArnPattern::new(pattern, true).matches(arn, &variables), expected, "{pattern} {arn}");
        }
    }

    #[test]
    fn no_pattern_takes_long() {
        let start = std::time::Instant::now();
        let text = "a".repeat(2048);
        assert!(!Pattern::wild(&("*a".repeat(1000) + "?b"), true).matches(&text, &NONE));
        let arn = format!("arn:aws:x:{text}:{text}:{text}:");
        assert!(
            !Pattern::resource(&format!("arn:aws:x:{0}b:{0}:*", "*a?".repeat(500)), true)
                .matches(&arn, &NONE)
        );
        assert!(!Pattern::resource(&"*:".repeat(2000), true).matches(&":".repeat(1999), &NONE));
        assert!(start.elapsed().as_secs() < 5);
    }

    /// What a pattern means, by trying everything.
    fn by_definition(pieces: &[Piece], text: &[char]) -> bool {
        let Some((piece, rest)) = pieces.split_first() else { return text.is_empty() };
        let first = |wanted: &dyn Fn(char) -> bool| {
            text.split_first().is_some_and(|(c, text)| wanted(*c) && by_definition(rest, text))
        };
        match piece {
            Piece::Text(own) => {
                let own: Vec<char> = own.chars().collect();
                text.starts_with(&own) && by_definition(rest, &text[own.len()..])
            }
            Piece::Any => (0..=text.len()).any(|n| by_definition(rest, &text[n..])),
            Piece::AnyInSegment => (0..=text.len())
                .take_while(|n| !text[..*n].contains(&':'))
                .any(|n| by_definition(rest, &text[n..])),
            Piece::One => first(&|_| true),
            Piece::OneInSegment => first(&|c| c != ':'),
            Piece::Variable(_) => unreachable!("the patterns have none"),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn wildcards_match_as_defined(pattern in "[abé*?]{0,8}", text in "[abé]{0,8}") {
            let pattern = Pattern::wild(&pattern, false);
            let chars: Vec<char> = text.chars().collect();
            prop_assert_eq!(pattern.matches(&text, &NONE), by_definition(&pattern.pieces, &chars));
        }

        #[test]
        fn resources_match_as_defined(pattern in "[ab:*?]{0,14}", text in "[ab:]{0,14}") {
            let pattern = Pattern::resource(&pattern, false);
            let chars: Vec<char> = text.chars().collect();
            prop_assert_eq!(pattern.matches(&text, &NONE), by_definition(&pattern.pieces, &chars));
        }

        #[test]
        fn no_text_is_too_odd(pattern in any::<String>(), text in any::<String>()) {
            let variables = Fixed(&[("aws:username", "Bob")]);
            let _ = Pattern::wild(&pattern, true).matches(&text, &variables);
            let _ = Pattern::resource(&pattern, true).matches(&text, &variables);
            let _ = ArnPattern::new(&pattern, true).matches(&text, &variables);
            prop_assert!(Pattern::exact(&pattern, false).matches(&pattern, &variables));
            prop_assert!(Pattern::exact(&pattern, false).equals_ignoring_case(&pattern, &variables));
        }
    }
}
