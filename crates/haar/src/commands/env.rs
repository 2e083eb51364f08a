//! `haar env`: what a shell must set so that AWS clients talk to this machine.

use std::fmt::Write as _;
use std::process::{Command, ExitCode};

use super::find_program;
use crate::cli::EnvShell;
use crate::config::{Config, DEFAULT_STATE_DIR, Settings};
use crate::credentials::Credentials;
use crate::error::Result;
use crate::state::StateDir;

/// What AWS clients read from their environment.
pub struct Environment {
    /// The URL of the API.
    pub endpoint: String,
    /// Names and values.
    pub variables: Vec<(&'static str, String)>,
}

/// The environment for the daemon of this state folder: of the running one, or else of the one that would be started. With the keys
/// of the account of these digits or this name, or else of the first.
pub fn variables(state: &StateDir, account: Option<&str>) -> Result<Environment> {
    let keys = match account {
        None => Credentials::load(state)?,
        Some(account) => Credentials::find(state, account)?,
    };
    let config = match state.running()? {
        Some(daemon) => daemon.config,
        None => Config::load(state.path(), Settings::default())?,
    };
    let endpoint = config.endpoint();
    let mut variables = vec![
        ("AWS_ENDPOINT_URL", endpoint.clone()),
        ("AWS_ACCESS_KEY_ID", keys.access_key_id),
        ("AWS_SECRET_ACCESS_KEY", keys.secret_access_key),
        ("AWS_REGION", config.region.clone()),
        ("AWS_DEFAULT_REGION", config.region),
    ];
    if state.path() != DEFAULT_STATE_DIR {
        variables.push(("HAAR_STATE_DIR", state.path().to_string_lossy().into_owned()));
    }
    Ok(Environment { endpoint, variables })
}

/// Prints the environment.
pub fn env(state: &StateDir, shell: Option<EnvShell>, account: Option<&str>) -> Result<ExitCode> {
    let environment = variables(state, account)?;
    let shell = shell.unwrap_or_else(|| {
        let fish = std::env::var("SHELL").is_ok_and(|shell| shell.ends_with("/fish"));
        if fish { EnvShell::Fish } else { EnvShell::Sh }
    });
    print!("{}", script(shell, &environment, aws_needs_help()));
    Ok(ExitCode::SUCCESS)
}

/// The script that sets the environment. A session token or a profile of another account must not stay. With `wrap`, it
/// also defines a function `aws` that passes the endpoint.
fn script(shell: EnvShell, environment: &Environment, wrap: bool) -> String {
    let mut script = String::new();
    for (name, value) in &environment.variables {
        let _ = match shell {
            EnvShell::Sh => writeln!(script, "export {name}={}", quote_sh(value)),
            EnvShell::Fish => writeln!(script, "set -gx {name} {}", quote_fish(value)),
            EnvShell::Powershell => writeln!(script, "$Env:{name} = {}", quote_powershell(value)),
        };
    }
    script.push_str(match shell {
        EnvShell::Sh => "unset AWS_SESSION_TOKEN AWS_PROFILE\n",
        EnvShell::Fish => "set -e AWS_SESSION_TOKEN; set -e AWS_PROFILE\n",
        EnvShell::Powershell => {
            "Remove-Item -ErrorAction SilentlyContinue Env:AWS_SESSION_TOKEN, Env:AWS_PROFILE\n"
        }
    });
    if wrap {
        script.push_str(match shell {
            EnvShell::Sh => {
                "aws() { command aws ${AWS_ENDPOINT_URL:+--endpoint-url \"$AWS_ENDPOINT_URL\"} \"$@\"; }\n"
            }
            EnvShell::Fish => {
                "function aws; if set -q AWS_ENDPOINT_URL; command aws --endpoint-url $AWS_ENDPOINT_URL $argv; else; command aws $argv; end; end\n"
            }
            EnvShell::Powershell => {
                "function aws { $a = Get-Command -CommandType Application aws | Select-Object -First 1; if ($Env:AWS_ENDPOINT_URL) { & $a --endpoint-url $Env:AWS_ENDPOINT_URL @args } else { & $a @args } }\n"
            }
        });
    }
    script
}

fn quote_sh(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:+@%,".contains(&b);
    if !text.is_empty() && text.bytes().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

fn quote_fish(text: &str) -> String {
    format!("'{}'", text.replace('\\', r"\\").replace('\'', r"\'"))
}

fn quote_powershell(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Whether the `aws` on the path is one that does not read `AWS_ENDPOINT_URL`.
fn aws_needs_help() -> bool {
    let Some(program) = find_program("aws") else { return false };
    let Ok(output) = Command::new(program).arg("--version").output() else { return false };
    // Early versions print it to the standard error.
    let text = [output.stdout, output.stderr].concat();
    is_too_old(&String::from_utf8_lossy(&text))
}

/// Whether a version as `aws-cli/2.9.19 Python/…` came before `AWS_ENDPOINT_URL` was read: 1.29.0 and 2.13.0.
fn is_too_old(version: &str) -> bool {
    let number = version.split_ascii_whitespace().find_map(|word| word.strip_prefix("aws-cli/"));
    let Some(number) = number else { return false };
    let mut parts = number.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    match (parts.next(), parts.next()) {
        (Some(0), _) => true,
        (Some(1), minor) => minor.unwrap_or(0) < 29,
        (Some(2), minor) => minor.unwrap_or(0) < 13,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(secret: &str) -> Environment {
        Environment {
            endpoint: "http://127.0.0.1:4566".into(),
            variables: vec![
                ("AWS_ENDPOINT_URL", "http://127.0.0.1:4566".into()),
                ("AWS_SECRET_ACCESS_KEY", secret.into()),
            ],
        }
    }

    #[test]
    fn versions_before_the_variable_are_told_apart() {
        for old in ["aws-cli/2.9.19 Python/3.11.2 Linux/6.1", "aws-cli/1.28.9 Python/3", "aws-cli/2.12.99 x"]
        {
            assert!(is_too_old(old), "{old}");
        }
        for new in
            ["aws-cli/1.29.0 Python/3", "aws-cli/1.45.11 P", "aws-cli/2.13.0 P", "aws-cli/3.0.0", "other"]
        {
            assert!(!is_too_old(new), "{new}");
        }
    }

    /// What a POSIX shell makes of the script is what went in, whatever characters it has, and the wrapper passes the
    /// endpoint and the arguments as they are.
    #[test]
    fn a_shell_reads_back_what_was_written() {
        let secret = "a+b/c'd $x \"y\" \\";
        let script = script(EnvShell::Sh, &environment(secret), true);
        let probe = r#"
            command() { shift; printf '%s|' "$@"; }
            printf '%s|' "$AWS_SECRET_ACCESS_KEY" "${AWS_SESSION_TOKEN-none}"
            aws ec2 'two words'"#;
        let output = Command::new("sh")
            .arg("-c")
            .arg(format!("{script}{probe}"))
            .env("AWS_SESSION_TOKEN", "stale")
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text, format!("{secret}|none|--endpoint-url|http://127.0.0.1:4566|ec2|two words|"));
    }

    #[test]
    fn a_recent_aws_is_not_wrapped() {
        assert!(!script(EnvShell::Sh, &environment("x"), false).contains("aws()"));
    }

    #[test]
    fn quotes_are_those_of_the_shell() {
        assert_eq!(quote_fish(r"a'b\c"), r"'a\'b\\c'");
        assert_eq!(quote_powershell("a'b"), "'a''b'");
    }
}
