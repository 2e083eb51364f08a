//! `haar ssh`: a login to an instance.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use base64::Engine as _;
use roxmltree::{Document, Node};

use super::running;
use crate::cli::Ssh;
use crate::client::Client;
use crate::credentials::Credentials;
use crate::error::{Error, Result};
use crate::state::StateDir;

/// What cloud-init and the `tiny` image print around the host keys on the console.
const KEYS_BEGIN: &str = "-----BEGIN SSH HOST KEY KEYS-----";
const KEYS_END: &str = "-----END SSH HOST KEY KEYS-----";

/// Becomes `ssh`.
pub fn ssh(state: &StateDir, arguments: &Ssh) -> Result<ExitCode> {
    let daemon = running(state)?;
    let keys = Credentials::load(state)?;
    let client = Client::new(&daemon)?;
    let target = find(&client, &keys, &arguments.instance)?;
    let address = address(&target)?;
    let login = match &arguments.login {
        Some(login) => login.clone(),
        None => client.default_user(&target.instance_id)?.ok_or_else(|| {
            let message = format!("the image {} is gone, and its user with it", target.image_id);
            refused(message, "name the user: -l USER")
        })?,
    };

    let mut command = Command::new("ssh");
    // The name under which the host's keys are kept: addresses are used again, identifiers are not.
    command.arg("-o").arg(option("HostKeyAlias", &target.instance_id));
    match host_keys(&client, &keys, &target.instance_id)? {
        Some(host_keys) => {
            let file = write_host_keys(state, &target.instance_id, &host_keys)?;
            command.arg("-o").arg(option("UserKnownHostsFile", &file.display().to_string()));
            command.args(["-o", "StrictHostKeyChecking=yes"]);
        }
        None => {
            let file = state.known_hosts();
            command.arg("-o").arg(option("UserKnownHostsFile", &file.display().to_string()));
            command.args(["-o", "StrictHostKeyChecking=accept-new"]);
        }
    }
    let identity =
        arguments.identity.clone().or_else(|| target.key_name.as_deref().and_then(|n| key_file(state, n)));
    if let Some(identity) = identity {
        command.arg("-i").arg(identity).args(["-o", "IdentitiesOnly=yes"]);
    }
    command.arg(format!("{login}@{address}"));
    if !arguments.command.is_empty() {
        command.arg("--").args(quote(&arguments.command));
    }
    Err(Error::Program { program: "ssh".into(), source: command.exec() })
}

/// An option of ssh whose value may hold spaces.
fn option(name: &str, value: &str) -> String {
    format!("{name}=\"{value}\"")
}

/// ssh joins the words with spaces and the shell there splits them again; one that came as a single word is a script.
fn quote(words: &[OsString]) -> Vec<OsString> {
    if let [script] = words {
        return vec![script.clone()];
    }
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-_./:=+,@%".contains(b);
    let quoted = words.iter().map(|word| {
        let text = word.as_encoded_bytes();
        if !text.is_empty() && text.iter().all(plain) {
            word.clone()
        } else {
            let text = String::from_utf8_lossy(text);
            OsString::from(format!("'{}'", text.replace('\'', r"'\''")))
        }
    });
    quoted.collect()
}

/// What of an instance matters to a login.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) instance_id: String,
    state: String,
    public_address: Option<String>,
    key_name: Option<String>,
    image_id: String,
}

/// Finds the instance by its identifier or its `Name` tag.
pub(super) fn find(client: &Client<'_>, keys: &Credentials, instance: &str) -> Result<Target> {
    let parameters = if instance.starts_with("i-") {
        vec![("InstanceId.1", instance)]
    } else {
        vec![
            ("Filter.1.Name", "tag:Name"),
            ("Filter.1.Value.1", instance),
            ("Filter.2.Name", "instance-state-name"),
            ("Filter.2.Value.1", "pending"),
            ("Filter.2.Value.2", "running"),
        ]
    };
    let answer = client.ec2(keys, "DescribeInstances", &parameters)?;
    let mut found = targets(&answer)?;
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(refused(
            format!("no running instance has the name {instance}"),
            "see them: haar aws ec2 describe-instances",
        )),
        _ => {
            let ids: Vec<_> = found.iter().map(|t| t.instance_id.as_str()).collect();
            let message = format!("several instances have the name {instance}: {}", ids.join(", "));
            Err(refused(message, "name one by its identifier"))
        }
    }
}

fn refused(message: String, hint: &str) -> Error {
    Error::Refused { message, hint: Some(hint.into()) }
}

/// The text of the child element with this name.
fn text<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    node.children().find(|child| child.tag_name().name() == name)?.text()
}

/// Reads the answer of DescribeInstances.
fn targets(answer: &str) -> Result<Vec<Target>> {
    let document = Document::parse(answer).map_err(|e| Error::Answer(e.to_string()))?;
    let sets = document.descendants().filter(|node| node.tag_name().name() == "instancesSet");
    let items = sets.flat_map(|set| set.children().filter(Node::is_element));
    let target = |item: Node<'_, '_>| {
        let required =
            |name: &str| text(item, name).ok_or_else(|| Error::Answer(format!("{name} is missing")));
        let state = item.children().find(|child| child.tag_name().name() == "instanceState");
        Ok(Target {
            instance_id: required("instanceId")?.to_owned(),
            state: state.and_then(|state| text(state, "name")).unwrap_or_default().to_owned(),
            public_address: text(item, "ipAddress").map(ToOwned::to_owned),
            key_name: text(item, "keyName").map(ToOwned::to_owned),
            image_id: required("imageId")?.to_owned(),
        })
    };
    items.map(target).collect()
}

/// The address that this machine reaches the instance at.
fn address(target: &Target) -> Result<String> {
    let id = &target.instance_id;
    if target.state != "running" {
        let hint = format!("start it: haar aws ec2 start-instances --instance-ids {id}");
        return Err(refused(format!("{id} is {}", target.state), &hint));
    }
    target.public_address.clone().ok_or_else(|| {
        refused(format!("{id} has no public address"), "log in from an instance of the same VPC")
    })
}

/// The private key's file, by the key pair's name.
fn key_file(state: &StateDir, name: &str) -> Option<PathBuf> {
    // A name may hold slashes, but no file's name does.
    if name.contains('/') || name.starts_with('.') {
        return None;
    }
    let home = std::env::home_dir().map(|home| home.join(".ssh"));
    let folders = [Some(state.keys()), home].into_iter().flatten();
    let files = folders.flat_map(|folder| [folder.join(format!("{name}.pem")), folder.join(name)]);
    files.into_iter().find(|file| file.is_file())
}

/// The host keys that the instance's console shows.
fn host_keys(client: &Client<'_>, keys: &Credentials, instance_id: &str) -> Result<Option<Vec<String>>> {
    let answer = client.ec2(keys, "GetConsoleOutput", &[("InstanceId", instance_id), ("Latest", "true")]);
    let answer = match answer {
        // Types that are not on the Nitro system refuse the latest output.
        Err(Error::Api { code, .. }) if code == "UnsupportedOperation" => {
            client.ec2(keys, "GetConsoleOutput", &[("InstanceId", instance_id)])?
        }
        other => other?,
    };
    let document = Document::parse(&answer).map_err(|e| Error::Answer(e.to_string()))?;
    let Some(output) = text(document.root_element(), "output") else { return Ok(None) };
    let output: String = output.split_ascii_whitespace().collect();
    let console = base64::engine::general_purpose::STANDARD.decode(output);
    let console = console.map_err(|e| Error::Answer(format!("the console output: {e}")))?;
    Ok(keys_in(&String::from_utf8_lossy(&console)))
}

/// The last block of host keys in a console's text, as lines `TYPE KEY`. `None` where there is no complete one.
fn keys_in(console: &str) -> Option<Vec<String>> {
    let (before, _) = console.rsplit_once(KEYS_END)?;
    let (_, block) = before.rsplit_once(KEYS_BEGIN)?;
    let key = |line: &str| {
        // A console may put a time or a program's name before each line.
        let start = ["ssh-", "ecdsa-"].iter().filter_map(|kind| line.find(kind)).min()?;
        let mut words = line[start..].split_ascii_whitespace();
        let (kind, key) = (words.next()?, words.next()?);
        let plain = key.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b));
        plain.then(|| format!("{kind} {key}"))
    };
    let keys: Vec<_> = block.lines().filter_map(key).collect();
    (!keys.is_empty()).then_some(keys)
}

/// Writes a known-hosts file for one instance.
fn write_host_keys(state: &StateDir, instance_id: &str, host_keys: &[String]) -> Result<PathBuf> {
    let dir = state.known_hosts().with_extension("d");
    fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
    let mut content = String::new();
    for key in host_keys {
        let _ = writeln!(content, "{instance_id} {key}");
    }
    let file = dir.join(instance_id);
    crate::state::write_private(&file, content.as_bytes())?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = r#"<DescribeInstancesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><reservationSet><item>
        <groupSet/><instancesSet><item><instanceId>i-1</instanceId><imageId>ami-1</imageId><instanceState><code>16</code>
        <name>running</name></instanceState><keyName>k</keyName><ipAddress>198.18.0.4</ipAddress></item>
        <item><instanceId>i-2</instanceId><imageId>ami-1</imageId><instanceState><name>stopped</name></instanceState></item>
        </instancesSet></item></reservationSet></DescribeInstancesResponse>"#;

    #[test]
    fn instances_are_read_from_the_answer() {
        let found = targets(ANSWER).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(address(&found[0]).unwrap(), "198.18.0.4");
        assert_eq!(found[0].key_name.as_deref(), Some("k"));
        assert_eq!(address(&found[1]).unwrap_err().to_string(), "i-2 is stopped");
        assert!(targets("<a").is_err());
    }

    #[test]
    fn the_latest_whole_block_of_host_keys_counts() {
        let console = format!(
            "boot\n{KEYS_BEGIN}\nssh-rsa OLD root\n{KEYS_END}\nreboot\n{KEYS_BEGIN}\n[   3.1] cloud-init: ssh-ed25519 AAAA+/= root@x\necdsa-sha2-nistp256 BBBB\n{KEYS_END}\n{KEYS_BEGIN}\nssh-rsa CUT"
        );
        let keys = keys_in(&console).unwrap();
        assert_eq!(keys, ["ssh-ed25519 AAAA+/=", "ecdsa-sha2-nistp256 BBBB"]);
        assert_eq!(keys_in("nothing"), None);
        assert_eq!(keys_in(&format!("{KEYS_BEGIN}\n{KEYS_END}")), None);
    }

    #[test]
    fn words_reach_the_other_side_as_they_were() {
        let words: Vec<OsString> = ["echo", "a b", "it's"].map(OsString::from).to_vec();
        assert_eq!(quote(&words), ["echo", "'a b'", r"'it'\''s'"].map(OsString::from));
        let script = vec![OsString::from("uptime; id")];
        assert_eq!(quote(&script), script);
    }

    #[test]
    fn key_names_do_not_leave_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        fs::create_dir(state.keys()).unwrap();
        fs::write(state.keys().join("demo.pem"), "").unwrap();
        fs::write(dir.path().join("outside.pem"), "").unwrap();
        assert_eq!(key_file(&state, "demo"), Some(state.keys().join("demo.pem")));
        assert_eq!(key_file(&state, "../outside"), None);
    }
}
