//! `haar account`: accounts and their root keys.

use std::process::ExitCode;

use serde_json::json;

use crate::cli::Account;
use crate::client::Client;
use crate::credentials::Credentials;
use crate::error::{Error, Result};
use crate::state::StateDir;

/// Most characters of a name.
const MAX_NAME: usize = 63;

/// Carries out a command on accounts.
pub fn account(state: &StateDir, command: Account) -> Result<ExitCode> {
    match command {
        Account::Create { name, output } => create(state, name, output.json),
        Account::List(output) => list(state, output.json),
    }
}

fn refused(message: String) -> Error {
    Error::Refused { message, hint: None }
}

fn check_name(name: &str) -> Result<()> {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    // Twelve digits would be taken for an account.
    let is_id = name.bytes().all(|b| b.is_ascii_digit());
    if name.is_empty() || name.len() > MAX_NAME || !plain || is_id {
        return Err(refused(format!(
            "{name:?} cannot name an account: letters, digits, '-', '_' and '.', not digits alone, at most {MAX_NAME}"
        )));
    }
    Ok(())
}

/// The file is the account: a daemon that runs is told of it, one that starts finds it.
fn create(state: &StateDir, name: Option<String>, json: bool) -> Result<ExitCode> {
    if let Some(name) = &name {
        check_name(name)?;
    }
    state.create()?;
    let known = Credentials::load_all(state)?;
    if name.is_some() && known.iter().any(|keys| keys.name == name) {
        return Err(refused(format!("there is an account named {} already", name.unwrap_or_default())));
    }
    let keys = Credentials::create_account(state, name)?;
    if let Some(daemon) = state.running()? {
        Client::new(&daemon)?.rescan_accounts()?;
    }
    if json {
        println!("{:#}", describe(&keys));
    } else {
        println!("{}", keys.account_id);
    }
    Ok(ExitCode::SUCCESS)
}

fn list(state: &StateDir, json: bool) -> Result<ExitCode> {
    let mut all = Vec::new();
    match Credentials::load(state) {
        Ok(_) => all = Credentials::load_all(state)?,
        Err(Error::NoCredentials(_)) => {}
        Err(other) => return Err(other),
    }
    if json {
        println!("{:#}", serde_json::Value::from_iter(all.iter().map(describe)));
        return Ok(ExitCode::SUCCESS);
    }
    for keys in all {
        println!("{}  {}  {}", keys.account_id, keys.access_key_id, keys.name.as_deref().unwrap_or("-"));
    }
    Ok(ExitCode::SUCCESS)
}

/// An account without its secret, which `haar env` prints.
fn describe(keys: &Credentials) -> serde_json::Value {
    json!({"account_id": keys.account_id, "name": keys.name, "access_key_id": keys.access_key_id})
}
