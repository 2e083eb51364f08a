use haar_store::{Resource, Store, StoreError};
use rand::TryRngCore;
use rand::rngs::OsRng;
use serde::{Deserialize, Serialize};

/// A random key of the installation, made once and kept with its state.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Secret {
    id: String,
    /// 64 hexadecimal digits.
    key: String,
}

impl Resource for Secret {
    const KIND: &'static str = "core.secret";
    fn account(&self) -> &'static str {
        "-"
    }
    fn region(&self) -> &'static str {
        "-"
    }
    fn id(&self) -> &str {
        &self.id
    }
}

impl Secret {
    /// The key of this name, made from the operating system's randomness when there is none yet.
    ///
    /// # Errors
    /// What the store gives.
    ///
    /// # Panics
    /// When the operating system has no randomness to give.
    pub async fn load(store: &Store, name: &str) -> Result<[u8; 32], StoreError> {
        store
            .transact(|tx| {
                let stored = tx.get::<Self>("-", "-", name).and_then(|secret| {
                    let mut key = [0; 32];
                    hex::decode_to_slice(&secret.key, &mut key).ok().map(|()| key)
                });
                if let Some(key) = stored {
                    return Ok(key);
                }
                let mut key = [0; 32];
                OsRng.try_fill_bytes(&mut key).expect("the operating system gives random numbers");
                tx.put(Self { id: name.to_owned(), key: hex::encode(key) });
                Ok(key)
            })
            .await
    }
}
