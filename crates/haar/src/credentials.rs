//! The root keys: the account and the access key that `haar` makes for itself at its first start.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::state::{StateDir, create_private};

/// The account and its root access key, as `credentials.json` holds them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// The account, 12 digits.
    pub account_id: String,
    /// `AKIA` and 16 characters.
    pub access_key_id: String,
    /// 40 characters.
    pub secret_access_key: String,
    /// What the installation calls the account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { account_id, access_key_id, secret_access_key: _, name: _ } = self;
        f.debug_struct("Credentials")
            .field("account_id", account_id)
            .field("access_key_id", access_key_id)
            .finish_non_exhaustive()
    }
}

impl Credentials {
    /// New keys from the operating system's random number generator.
    fn generate() -> Self {
        let mut rng = rand::rngs::OsRng;
        let mut rng = rand::TryRngCore::unwrap_mut(&mut rng);
        let mut text = |length: usize, alphabet: &[u8]| -> String {
            (0..length).map(|_| char::from(alphabet[rng.random_range(0..alphabet.len())])).collect()
        };
        Self {
            // No leading zero, which spreadsheets and careless scripts eat.
            account_id: text(1, b"123456789") + &text(11, b"0123456789"),
            access_key_id: format!("AKIA{}", text(16, b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567")),
            secret_access_key: text(40, b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"),
            name: None,
        }
    }

    /// The keys in the state folder, or [`Error::NoCredentials`].
    pub fn load(state: &StateDir) -> Result<Self> {
        Self::read(&state.credentials())?.ok_or_else(|| Error::NoCredentials(state.path().into()))
    }

    /// The keys in a file; none where there is no file.
    fn read(path: &Path) -> Result<Option<Self>> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("read", path)(e)),
        };
        let malformed = |reason: String| Error::Malformed { path: path.into(), reason };
        let keys: Self = serde_json::from_slice(&text).map_err(|e| malformed(e.to_string()))?;
        keys.check().map_err(malformed)?;
        Ok(Some(keys))
    }

    /// The keys in the state folder, made now where there are none. If two processes make them at once, both return those
    /// of one.
    pub fn load_or_create(state: &StateDir) -> Result<Self> {
        match Self::load(state) {
            Err(Error::NoCredentials(_)) => {}
            other => return other,
        }
        Self::generate().write(&state.credentials())?;
        Self::load(state)
    }

    /// The keys of all accounts: the first one's, and those in the folder of further accounts.
    pub fn load_all(state: &StateDir) -> Result<Vec<Self>> {
        let mut all = vec![Self::load_or_create(state)?];
        let folder = state.accounts();
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(all),
            Err(e) => return Err(Error::io("read", folder)(e)),
        };
        let mut files: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
        files.sort();
        for path in files {
            all.extend(Self::read(&path)?);
        }
        Ok(all)
    }

    /// The keys of the account of these digits or this name.
    pub fn find(state: &StateDir, account: &str) -> Result<Self> {
        Self::load(state)?;
        let found = Self::load_all(state)?
            .into_iter()
            .find(|keys| keys.account_id == account || keys.name.as_deref() == Some(account));
        found.ok_or_else(|| Error::Refused {
            message: format!("there is no account {account}"),
            hint: Some("see them: haar account list; make one: haar account create".into()),
        })
    }

    /// Makes a further account, whose keys then are in the state folder.
    pub fn create_account(state: &StateDir, name: Option<String>) -> Result<Self> {
        let folder = state.accounts();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(Error::io("create", &folder))?;
        let keys = Self { name, ..Self::generate() };
        keys.write(&folder.join(format!("{}.json", keys.account_id)))?;
        Ok(keys)
    }

    fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).expect("keys are plain data");
        create_private(path, &text)
    }

    /// As IAM takes them over.
    pub fn into_root_key(self) -> haar_iam::RootKey {
        haar_iam::RootKey {
            account: self.account_id,
            name: self.name,
            access_key_id: self.access_key_id,
            secret: self.secret_access_key,
        }
    }

    fn check(&self) -> std::result::Result<(), String> {
        let digits = self.account_id.bytes().all(|b| b.is_ascii_digit());
        if !digits || self.account_id.len() != 12 {
            return Err("account_id is not 12 digits".into());
        }
        let key = self.access_key_id.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit());
        if !key || !(16..=128).contains(&self.access_key_id.len()) {
            return Err("access_key_id is not 16 to 128 upper-case letters and digits".into());
        }
        if self.secret_access_key.is_empty() {
            return Err("secret_access_key is empty".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn keys_are_made_once_and_only_their_owner_reads_them() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        assert!(matches!(Credentials::load(&state), Err(Error::NoCredentials(_))));
        let made = Credentials::load_or_create(&state).unwrap();
        assert_eq!(made.access_key_id.len(), 20);
        assert_eq!(made.secret_access_key.len(), 40);
        assert_eq!(Credentials::load_or_create(&state).unwrap(), made);
        assert_eq!(Credentials::load(&state).unwrap(), made);
        let mode = fs::metadata(state.credentials()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing temporary stays");
        assert!(!format!("{made:?}").contains(&made.secret_access_key));
    }

    #[test]
    fn processes_that_start_at_once_agree() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        let all: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..8).map(|_| scope.spawn(|| Credentials::load_or_create(&state).unwrap())).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(all.iter().all(|keys| *keys == all[0]));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing temporary stays");
    }

    #[test]
    fn damaged_keys_are_refused_with_the_file_named() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        for text in
            ["", "{}", r#"{"account_id":"1","access_key_id":"AKIAAAAAAAAAAAAAAAAA","secret_access_key":"x"}"#]
        {
            fs::write(state.credentials(), text).unwrap();
            let error = Credentials::load_or_create(&state).unwrap_err().to_string();
            assert!(error.contains("credentials.json"), "{error}");
        }
    }
}
