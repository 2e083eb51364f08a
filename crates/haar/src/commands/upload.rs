//! `haar upload`: files for ImportImage and ImportSnapshot.

use std::fs::File;
use std::io::Read;
use std::process::ExitCode;

use haar_image::{Progress, Unit};
use indicatif::HumanBytes;

use super::image::Bars;
use super::running;
use crate::cli::Upload as Arguments;
use crate::client::Client;
use crate::credentials::Credentials;
use crate::error::{Error, Result};
use crate::state::StateDir;
use crate::uploads::{PIECE, Upload, check_name};

/// Carries out a command on uploads.
pub fn upload(state: &StateDir, arguments: &Arguments) -> Result<ExitCode> {
    let account = match &arguments.account {
        Some(account) => Credentials::find(state, account)?,
        None => Credentials::load(state)?,
    };
    let account = account.account_id;
    let daemon = running(state)?;
    let client = Client::new(&daemon)?;
    let asked = |name: &str, size| Upload { account: account.clone(), name: name.to_owned(), size };
    if arguments.list {
        let found = client.uploads("list", &asked("", 0))?;
        if arguments.json {
            println!("{found:#}");
            return Ok(ExitCode::SUCCESS);
        }
        for one in found.as_array().into_iter().flatten() {
            let size = HumanBytes(one["size"].as_u64().unwrap_or_default()).to_string();
            println!("{size:>12}  {}", one["url"].as_str().unwrap_or_default());
        }
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(name) = &arguments.remove {
        client.uploads("remove", &asked(name, 0))?;
        println!("{name} removed");
        return Ok(ExitCode::SUCCESS);
    }
    let path = arguments.file.as_ref().expect("clap asks for it");
    let own = || path.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = arguments.name.clone().or_else(own).unwrap_or_default();
    check_name(&name)
        .map_err(|message| Error::Refused { message, hint: Some("give it one: --name NAME".into()) })?;
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let found = file.metadata().map_err(Error::io("examine", path))?;
    if !found.is_file() {
        let message = format!("{} is not a regular file", path.display());
        return Err(Error::Refused { message, hint: None });
    }
    let upload = asked(&name, found.len());
    client.uploads("begin", &upload)?;
    let mut bars = Bars::new();
    bars.stage("upload", Unit::Bytes, Some(upload.size));
    let sent = send(&client, &mut file, path, &upload, &mut bars);
    bars.end(sent.is_ok());
    sent?;
    let answer = client.uploads("end", &upload)?;
    if arguments.json {
        println!("{answer:#}");
    } else {
        println!("{}", answer["url"].as_str().unwrap_or_default());
    }
    Ok(ExitCode::SUCCESS)
}

/// Sends a file's content.
fn send(
    client: &Client<'_>,
    file: &mut File,
    path: &std::path::Path,
    upload: &Upload,
    progress: &mut dyn Progress,
) -> Result<()> {
    let mut done = 0;
    loop {
        let mut piece = Vec::with_capacity(PIECE);
        file.by_ref().take(PIECE as u64).read_to_end(&mut piece).map_err(Error::io("read", path))?;
        if piece.is_empty() {
            return Ok(());
        }
        let count = piece.len() as u64;
        client.upload_piece(upload, done, piece.into())?;
        done += count;
        progress.advance(done);
    }
}
