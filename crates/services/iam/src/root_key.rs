//! The access key of an account's root.

use haar_api::{AccessKey, Credentials, Principal};

/// Knows one access key: that of the root of the installation's account.
pub struct RootKey {
    access_key_id: String,
    key: AccessKey,
}

impl RootKey {
    /// The key of the root of `account`, twelve digits.
    #[must_use]
    pub fn new(
        account: impl Into<String>,
        access_key_id: impl Into<String>,
        secret: impl Into<String>,
    ) -> Self {
        let access_key_id = access_key_id.into();
        let principal = Principal::root(account, access_key_id.clone());
        let key = AccessKey { secret: secret.into(), session_token: None, expires: None, principal };
        Self { access_key_id, key }
    }
}

impl Credentials for RootKey {
    fn lookup(&self, access_key_id: &str) -> Option<AccessKey> {
        (access_key_id == self.access_key_id).then(|| self.key.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_roots_key_is_known() {
        let keys = RootKey::new("123456789012", "AKIAEXAMPLE", "secret");
        let key = keys.lookup("AKIAEXAMPLE").unwrap();
        assert_eq!((key.secret.as_str(), key.principal.is_root()), ("secret", true));
        assert_eq!((key.session_token, key.expires), (None, None));
        assert!(keys.lookup("AKIAEXAMPL").is_none());
        assert!(keys.lookup("").is_none());
    }
}
