//! Names of Rust items from the names of the models.

/// `snake_case` from `CamelCase` with acronyms (`VpcId`, `DNSName`, `CidrIpv6`, `ec2InstanceIds`).
pub fn snake(name: &str) -> String {
    let name = name.replace("IPv", "Ipv");
    let chars: Vec<char> = name.chars().collect();
    let mut out = String::with_capacity(name.len() + 8);
    for (index, &c) in chars.iter().enumerate() {
        if !c.is_ascii_alphanumeric() {
            if !out.ends_with('_') {
                out.push('_');
            }
            continue;
        }
        if c.is_ascii_uppercase() && index > 0 {
            let before = chars[index - 1];
            let acronym_ends =
                before.is_ascii_uppercase() && chars.get(index + 1).is_some_and(char::is_ascii_lowercase);
            if (before.is_ascii_lowercase() || before.is_ascii_digit() || acronym_ends) && !out.ends_with('_')
            {
                out.push('_');
            }
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

/// A field or method name: [`snake`], with Rust's keywords escaped.
pub fn identifier(name: &str) -> String {
    const KEYWORDS: [&str; 38] = [
        "abstract", "as", "async", "await", "become", "box", "break", "const", "continue", "do", "dyn",
        "else", "enum", "extern", "final", "fn", "for", "gen", "if", "impl", "in", "let", "loop", "macro",
        "match", "mod", "move", "mut", "override", "priv", "pub", "ref", "return", "static", "struct", "try",
        "type", "use",
    ];
    let name = snake(name);
    match name.as_str() {
        "self" | "super" | "crate" => format!("{name}_"),
        other
            if KEYWORDS.contains(&other)
                || matches!(other, "true" | "false" | "where" | "while" | "yield") =>
        {
            format!("r#{name}")
        }
        _ => name,
    }
}

/// A type's name: the shape's, with a capital first letter.
pub fn type_name(shape: &str) -> String {
    let mut chars = shape.chars();
    chars.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(chars).collect()
}

/// An enum variant's name from its value: `shutting-down` is `ShuttingDown`, `x86_64` is `X86_64`, `NO_VALUE` is
/// `NoValue`.
pub fn variant(value: &str) -> String {
    let mut out = String::new();
    for word in value.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()) {
        let shouted = word.len() > 1 && !word.chars().any(|c| c.is_ascii_lowercase());
        let (first, rest) = word.split_at(1);
        if out.ends_with(|c: char| c.is_ascii_digit()) && first.starts_with(|c: char| c.is_ascii_digit()) {
            out.push('_');
        }
        out.push_str(&first.to_ascii_uppercase());
        out.push_str(&if shouted { rest.to_ascii_lowercase() } else { rest.to_owned() });
    }
    if out.is_empty() {
        out.push_str("Empty");
    }
    if out.starts_with(|c: char| c.is_ascii_digit()) {
        out.insert(0, 'N');
    }
    if out == "Self" {
        out.push('_');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_snake_case() {
        for (name, field) in [
            ("VpcId", "vpc_id"),
            ("DNSName", "dns_name"),
            ("CidrIpv6", "cidr_ipv6"),
            ("IPv6Address", "ipv6_address"),
            ("ec2InstanceIds", "ec2_instance_ids"),
            ("S3Bucket", "s3_bucket"),
            ("KMSKeyId", "kms_key_id"),
            ("Type", "r#type"),
            ("Self", "self_"),
            ("latest-revision", "latest_revision"),
        ] {
            assert_eq!(identifier(name), field);
        }
    }

    #[test]
    fn variants_are_camel_case() {
        for (value, name) in [
            ("shutting-down", "ShuttingDown"),
            ("x86_64", "X86_64"),
            ("NO_VALUE", "NoValue"),
            ("io1", "Io1"),
            ("", "Empty"),
            ("2.0", "N2_0"),
            ("machine", "Machine"),
            ("all-or-None", "AllOrNone"),
        ] {
            assert_eq!(variant(value), name);
        }
    }
}
