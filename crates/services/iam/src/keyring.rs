//! The principals behind signatures: long-term keys in records, temporary ones in their session tokens.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use haar_api::sigv4::Secret;
use haar_api::{AccessKey, Context, Credentials, KeyError, Principal, PrincipalKind, Session};
use haar_records::GLOBAL_ACCOUNT;
use haar_records::iam::{self, AccessKeyStatus, Account, REGION, Role, Usage, User};
use haar_store::{Snapshot, Store, StoreError};
use rand::Rng;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::Sealer;

/// How often what was used is written to the records.
const USAGE_INTERVAL: Duration = Duration::from_secs(2);

/// How much later a use must be than the recorded one of the same service and region to be recorded.
const USAGE_STEP: time::Duration = time::Duration::minutes(1);

/// How many secrets, and how many sessions, are kept open.
const MOST_OPENED: usize = 1024;

/// Longest state of a session, unpacked.
const MAX_STATE: u64 = 256 * 1024;

/// The root's access key of an account, as a file of the installation has it.
#[derive(Clone, PartialEq, Eq)]
pub struct RootKey {
    /// Twelve digits.
    pub account: String,
    /// What the installation calls the account.
    pub name: Option<String>,
    /// `AKIA…`
    pub access_key_id: String,
    /// The secret.
    pub secret: String,
}

/// Who has temporary credentials, by unique ids: what is made later under the same name is somebody else.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Holder {
    Root,
    User {
        user_id: String,
    },
    Role {
        role_id: String,
        session_name: String,
    },
    /// `source_id`: of the user that asked, or the account of the root that did.
    Federated {
        source_id: String,
        name: String,
    },
}

/// What a session token holds.
#[derive(Serialize, Deserialize)]
struct Token {
    secret: String,
    account: String,
    holder: Holder,
    session: Arc<Session>,
}

/// A session token that was opened.
struct OpenToken {
    token: Token,
    secret: Arc<Secret>,
}

/// What was opened for the latest requests, by the ids of their access keys, with what it was sealed in: to open it
/// takes longer than all else of a signature's check.
struct Opened<T>(Mutex<HashMap<String, (String, T)>>);

impl<T> Default for Opened<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> Opened<T> {
    /// What `sealed` holds, which must belong to this access key: as it was opened before, or now, by `open`.
    fn get(&self, access_key_id: &str, sealed: &str, open: impl FnOnce() -> Option<T>) -> Option<T> {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, opened)) = lock().get(access_key_id)
            && known == sealed
        {
            return Some(opened.clone());
        }
        let opened = open()?;
        let mut all = lock();
        if all.len() >= MOST_OPENED {
            all.clear();
        }
        all.insert(access_key_id.to_owned(), (sealed.to_owned(), opened.clone()));
        Some(opened)
    }
}

/// New temporary credentials.
#[derive(Clone)]
pub(crate) struct Temporary {
    pub access_key_id: String,
    pub secret: String,
    pub session_token: String,
    pub principal: Principal,
}

/// Knows the keys of all accounts.
#[derive(Clone)]
pub struct Keyring {
    store: Store,
    sealer: Sealer,
    usage: Arc<Mutex<HashMap<String, Usage>>>,
    secrets: Arc<Opened<Arc<Secret>>>,
    sessions: Arc<Opened<Arc<OpenToken>>>,
}

impl Keyring {
    /// The keys of a store, sealed by this sealer.
    #[must_use]
    pub fn new(store: Store, sealer: Sealer) -> Self {
        Self { store, sealer, usage: Arc::default(), secrets: Arc::default(), sessions: Arc::default() }
    }

    /// Makes sure that an account is there and that its root has this key. A root that has since given up the key, by IAM, does not
    /// get it back, unless the file names another than before.
    ///
    /// # Errors
    /// What the store gives.
    pub async fn import(&self, root: &RootKey) -> Result<(), StoreError> {
        let now = OffsetDateTime::now_utc();
        self.store
            .transact(|tx| {
                let known = tx.get::<Account>(&root.account, REGION, &root.account);
                let mut account = match &known {
                    Some(account) => Account::clone(account),
                    None => Account {
                        account: root.account.clone(),
                        id: root.account.clone(),
                        name: None,
                        alias: None,
                        create_time: now,
                        root_key: None,
                    },
                };
                account.name.clone_from(&root.name);
                let key = tx.get::<iam::AccessKey>(GLOBAL_ACCOUNT, REGION, &root.access_key_id);
                let imported = account.root_key.as_deref() == Some(&root.access_key_id);
                let is_right = key.as_ref().is_some_and(|key| {
                    self.sealer.open_secret(&key.id, &key.secret).as_deref() == Some(&root.secret)
                });
                if !imported || key.is_some() && !is_right {
                    if let Some(old) = account.root_key.replace(root.access_key_id.clone()) {
                        tx.delete::<iam::AccessKey>(GLOBAL_ACCOUNT, REGION, &old);
                    }
                    tx.put(iam::AccessKey {
                        id: root.access_key_id.clone(),
                        owner_account: root.account.clone(),
                        user_id: None,
                        user_name: None,
                        secret: self.sealer.seal_secret(&root.access_key_id, &root.secret),
                        status: AccessKeyStatus::Active,
                        create_time: key.as_ref().map_or(now, |key| key.create_time),
                    });
                }
                tx.put(account);
                Ok(())
            })
            .await
    }

    /// Writes to the records when keys and roles were used, until the future is dropped.
    pub async fn record_usage(self) {
        loop {
            tokio::time::sleep(USAGE_INTERVAL).await;
            let snapshot = self.store.snapshot();
            let is_new = |usage: &Usage| match snapshot.get::<Usage>(GLOBAL_ACCOUNT, REGION, &usage.id) {
                None => true,
                Some(known) => {
                    (&known.region, &known.service) != (&usage.region, &usage.service)
                        || usage.at - known.at >= USAGE_STEP
                }
            };
            let new: Vec<Usage> = self.lock_usage().values().filter(|usage| is_new(usage)).cloned().collect();
            if !new.is_empty() {
                let written = self.store.transact(|tx| {
                    for usage in &new {
                        if self.is_known(tx.snapshot(), &usage.id) {
                            tx.put(usage.clone());
                        }
                    }
                    Ok::<_, StoreError>(())
                });
                if let Err(error) = written.await {
                    tracing::warn!(%error, "the use of access keys is not recorded");
                    continue;
                }
            }
            self.lock_usage().retain(|id, _| self.is_known(&snapshot, id));
        }
    }

    /// Whether the key or role is still there: one that was deleted leaves nothing behind.
    fn is_known(&self, snapshot: &Snapshot, id: &str) -> bool {
        if id.starts_with("AROA") {
            let mut accounts = snapshot.list_all::<Account>();
            return accounts.any(|account| {
                snapshot.by_index::<Role>(&account.id, REGION, "role-id", id).next().is_some()
            });
        }
        snapshot.get::<iam::AccessKey>(GLOBAL_ACCOUNT, REGION, id).is_some()
    }

    /// When an access key or role was last used.
    pub(crate) fn usage(&self, snapshot: &Snapshot, id: &str) -> Option<Usage> {
        let recent = self.lock_usage().get(id).cloned();
        recent.or_else(|| snapshot.get::<Usage>(GLOBAL_ACCOUNT, REGION, id).map(|usage| Usage::clone(&usage)))
    }

    fn lock_usage(&self) -> std::sync::MutexGuard<'_, HashMap<String, Usage>> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn sealer(&self) -> &Sealer {
        &self.sealer
    }

    /// The authorization message in its encoded form, of an account.
    pub(crate) fn open_message(&self, account: &str, encoded: &str) -> Option<String> {
        self.sealer.open_message(account, encoded)
    }

    /// Makes temporary credentials.
    pub(crate) fn issue(
        &self,
        snapshot: &Snapshot,
        account: &str,
        holder: Holder,
        session: Session,
    ) -> Option<Temporary> {
        let access_key_id = new_key_id("ASIA", account);
        let secret = new_secret();
        let mut principal = principal_of(snapshot, account, &holder)?;
        let session = Arc::new(session);
        let token = Token { secret: secret.clone(), account: account.to_owned(), holder, session };
        let state = pack(&serde_json::to_vec(&token).ok()?);
        let session_token = self.sealer.seal_token(&access_key_id, &state);
        principal.access_key_id.clone_from(&access_key_id);
        principal.session = Some(token.session);
        Some(Temporary { access_key_id, secret, session_token, principal })
    }

    /// Makes credentials of a role for a service that acts on its own behalf, as an instance's. None if the role is not there.
    ///
    /// The role's trust policy is the caller's to ask.
    #[must_use]
    pub fn role_credentials(
        &self,
        account: &str,
        role_id: &str,
        session_name: &str,
        session: Session,
    ) -> Option<RoleCredentials> {
        let holder = Holder::Role { role_id: role_id.to_owned(), session_name: session_name.to_owned() };
        let expires = session.expires;
        let made = self.issue(&self.store.snapshot(), account, holder, session)?;
        Some(RoleCredentials {
            access_key_id: made.access_key_id,
            secret_access_key: made.secret,
            session_token: made.session_token,
            expires,
        })
    }

    fn long_term(&self, snapshot: &Snapshot, id: &str) -> Option<AccessKey> {
        let key = snapshot.get::<iam::AccessKey>(GLOBAL_ACCOUNT, REGION, id)?;
        if key.status != AccessKeyStatus::Active {
            return None;
        }
        let principal = match (&key.user_id, &key.user_name) {
            (Some(user_id), Some(name)) => {
                let user = snapshot.get::<User>(&key.owner_account, REGION, name)?;
                if user.user_id != *user_id {
                    return None;
                }
                principal_of_user(&user)
            }
            _ => Principal::root(&key.owner_account, ""),
        };
        let open = || self.sealer.open_secret(id, &key.secret).map(|secret| Arc::new(Secret::new(secret)));
        let secret = self.secrets.get(id, &key.secret.0, open)?;
        Some(AccessKey { secret, principal: Principal { access_key_id: id.to_owned(), ..principal } })
    }

    fn temporary(
        &self,
        snapshot: &Snapshot,
        id: &str,
        token: &str,
        now: OffsetDateTime,
    ) -> Result<AccessKey, KeyError> {
        let open = || {
            let state = unpack(&self.sealer.open_token(id, token)?)?;
            let token: Token = serde_json::from_slice(&state).ok()?;
            let secret = Arc::new(Secret::new(&*token.secret));
            Some(Arc::new(OpenToken { token, secret }))
        };
        let opened = self.sessions.get(id, token, open).ok_or(KeyError::Unknown)?;
        let OpenToken { token, secret } = &*opened;
        if token.session.expires <= now {
            return Err(KeyError::Expired);
        }
        let principal = principal_of(snapshot, &token.account, &token.holder).ok_or(KeyError::Unknown)?;
        let principal =
            Principal { access_key_id: id.to_owned(), session: Some(token.session.clone()), ..principal };
        Ok(AccessKey { secret: secret.clone(), principal })
    }
}

/// Credentials of a role.
#[derive(Clone)]
pub struct RoleCredentials {
    /// `ASIA…`
    pub access_key_id: String,
    /// The secret.
    pub secret_access_key: String,
    /// The token that requests must carry.
    pub session_token: String,
    /// When they end.
    pub expires: OffsetDateTime,
}

impl Credentials for Keyring {
    fn lookup(
        &self,
        access_key_id: &str,
        session_token: Option<&str>,
        now: OffsetDateTime,
    ) -> Result<AccessKey, KeyError> {
        let snapshot = self.store.snapshot();
        match session_token {
            Some(token) => self.temporary(&snapshot, access_key_id, token, now),
            None => self.long_term(&snapshot, access_key_id).ok_or(KeyError::Unknown),
        }
    }

    fn used(&self, ctx: &Context) {
        let id = match &ctx.principal.kind {
            PrincipalKind::AssumedRole { role_id, .. } => role_id,
            _ if ctx.principal.session.is_none() => &ctx.principal.access_key_id,
            _ => return,
        };
        let at = ctx.now.replace_nanosecond(0).unwrap_or(ctx.now);
        let mut usage = self.lock_usage();
        if let Some(known) = usage.get_mut(id)
            && (&known.region, &*known.service) == (&ctx.region, ctx.service)
        {
            known.at = at;
            return;
        }
        let (region, service) = (ctx.region.clone(), ctx.service.to_owned());
        usage.insert(id.clone(), Usage { id: id.clone(), at, region, service });
    }
}

/// The principal that temporary credentials stand for now; none if who has them is gone.
fn principal_of(snapshot: &Snapshot, account: &str, holder: &Holder) -> Option<Principal> {
    let user = |id: &str| snapshot.by_index::<User>(account, REGION, "user-id", id).next();
    snapshot.get::<Account>(account, REGION, account)?;
    match holder {
        Holder::Root => Some(Principal::root(account, "")),
        Holder::User { user_id } => user(user_id).map(|user| principal_of_user(user)),
        Holder::Role { role_id, session_name } => {
            let role = snapshot.by_index::<Role>(account, REGION, "role-id", role_id).next()?;
            Some(Principal {
                account: account.to_owned(),
                arn: format!("arn:aws:sts::{account}:assumed-role/{}/{session_name}", role.name),
                user_id: format!("{role_id}:{session_name}"),
                access_key_id: String::new(),
                kind: PrincipalKind::AssumedRole {
                    role_name: role.name.clone(),
                    role_id: role_id.clone(),
                    role_arn: role.arn(),
                    session_name: session_name.clone(),
                },
                session: None,
            })
        }
        Holder::Federated { source_id, name } => {
            let source_arn = if source_id == account {
                format!("arn:aws:iam::{account}:root")
            } else {
                user(source_id)?.arn()
            };
            Some(Principal {
                account: account.to_owned(),
                arn: format!("arn:aws:sts::{account}:federated-user/{name}"),
                user_id: format!("{account}:{name}"),
                access_key_id: String::new(),
                kind: PrincipalKind::FederatedUser {
                    source_arn,
                    source_id: source_id.clone(),
                    name: name.clone(),
                },
                session: None,
            })
        }
    }
}

fn principal_of_user(user: &User) -> Principal {
    Principal {
        account: user.account.clone(),
        arn: user.arn(),
        user_id: user.user_id.clone(),
        access_key_id: String::new(),
        kind: PrincipalKind::User { name: user.name.clone() },
        session: None,
    }
}

/// A new unique id: the prefix and 16 characters (IAM User Guide, "IAM identifiers", "Unique identifiers").
pub(crate) fn new_unique_id(prefix: &str) -> String {
    text(prefix, 17, BASE32)
}

/// A new access key's id: `AKIA` or `ASIA` and 16 characters, which hold the account and 39 random bits, as AWS's do.
pub(crate) fn new_key_id(prefix: &str, account: &str) -> String {
    // 80 bits: 1, the account in 40, and what is random.
    let account: u128 = account.parse().unwrap_or(0) & ((1 << 40) - 1);
    let bits = 1 << 79 | account << 39 | u128::from(rand::random::<u64>()) & ((1 << 39) - 1);
    let letters = (0..16).rev().map(|place| char::from(BASE32[(bits >> (5 * place) & 31) as usize]));
    prefix.chars().chain(letters).collect()
}

/// The account in an id that [`new_key_id`] made.
pub(crate) fn account_of_key_id(id: &str) -> Option<String> {
    let letters =
        id.strip_prefix("AKIA").or_else(|| id.strip_prefix("ASIA")).filter(|rest| rest.len() == 16)?;
    let mut bits = 0_u128;
    for letter in letters.bytes() {
        let value = BASE32.iter().position(|known| *known == letter)?;
        bits = bits << 5 | value as u128;
    }
    Some(format!("{:012}", bits >> 39 & ((1 << 40) - 1)))
}

const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// A new secret of an access key: 40 characters.
pub(crate) fn new_secret() -> String {
    text("", 40, b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
}

fn text(prefix: &str, length: usize, alphabet: &[u8]) -> String {
    let mut rng = rand::rngs::OsRng;
    let mut rng = rand::TryRngCore::unwrap_mut(&mut rng);
    let random = (0..length).map(|_| char::from(alphabet[rng.random_range(0..alphabet.len())]));
    prefix.chars().chain(random).collect()
}

/// Packs text, as session policies and tags are packed into tokens.
pub(crate) fn pack(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("memory can be written to")
}

fn unpack(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    DeflateDecoder::new(bytes).take(MAX_STATE).read_to_end(&mut out).ok()?;
    Some(out)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use haar_api::SessionOrigin;

    use super::*;

    pub(crate) const ACCOUNT: &str = "123456789012";

    pub(crate) async fn keyring() -> Keyring {
        let builder = haar_records::iam::register(haar_core::register(Store::builder()));
        let keyring = Keyring::new(builder.in_memory().await.unwrap(), Sealer::new([7; 32]));
        keyring.import(&root("AKIAROOT", "root-secret")).await.unwrap();
        keyring
    }

    fn root(id: &str, secret: &str) -> RootKey {
        RootKey { account: ACCOUNT.into(), name: None, access_key_id: id.into(), secret: secret.into() }
    }

    pub(crate) fn role(role_id: &str) -> Role {
        Role {
            account: ACCOUNT.into(),
            id: "writer".into(),
            name: "Writer".into(),
            role_id: role_id.into(),
            path: "/".into(),
            description: None,
            assume_role_policy_document: String::new(),
            trusted_ids: BTreeMap::new(),
            max_session_duration: 3600,
            create_time: OffsetDateTime::UNIX_EPOCH,
            permissions_boundary: None,
            attached_policies: Vec::new(),
            inline_policies: BTreeMap::new(),
            linked_service: None,
            tags: BTreeMap::new(),
        }
    }

    pub(crate) fn session(now: OffsetDateTime) -> Session {
        Session::new(SessionOrigin::AssumeRole, now, time::Duration::hours(1))
    }

    fn now() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap()
    }

    #[tokio::test]
    async fn root_keys_follow_the_file_but_not_back_from_deletion() {
        let keyring = keyring().await;
        let secret = |id: &str| keyring.lookup(id, None, now()).map(|key| key.secret.expose().to_owned());
        assert_eq!(secret("AKIAROOT").as_deref(), Ok("root-secret"));
        assert!(keyring.lookup("AKIAROOT", None, now()).unwrap().principal.is_root());
        assert_eq!(secret("AKIANONE"), Err(KeyError::Unknown));
        assert_eq!(secret(""), Err(KeyError::Unknown));
        keyring.import(&root("AKIAROOT", "other-secret")).await.unwrap();
        assert_eq!(secret("AKIAROOT").as_deref(), Ok("other-secret"));
        let delete = |tx: &mut haar_store::Tx| {
            tx.delete::<iam::AccessKey>(GLOBAL_ACCOUNT, REGION, "AKIAROOT");
            Ok::<_, StoreError>(())
        };
        keyring.store.transact(delete).await.unwrap();
        keyring.import(&root("AKIAROOT", "other-secret")).await.unwrap();
        assert_eq!(secret("AKIAROOT"), Err(KeyError::Unknown));
        keyring.import(&root("AKIANEW", "new-secret")).await.unwrap();
        assert_eq!(secret("AKIANEW").as_deref(), Ok("new-secret"));
    }

    #[test]
    fn key_ids_tell_their_account() {
        for account in ["000000000001", ACCOUNT, "999999999999"] {
            let id = new_key_id("ASIA", account);
            assert_eq!(id.len(), 20);
            assert_ne!(id, new_key_id("ASIA", account));
            assert_eq!(account_of_key_id(&id).as_deref(), Some(account));
        }
        for id in ["", "ASIA", "ASIAé234567ABCDEFGHI", "AKIA0000000000000000", "AROAABCDEFGHIJKLMNOP"] {
            assert_eq!(account_of_key_id(id), None, "{id}");
        }
    }

    #[tokio::test]
    async fn a_lost_sealing_key_costs_only_what_it_sealed() {
        let keyring = keyring().await;
        let other = Keyring::new(keyring.store.clone(), Sealer::new([8; 32]));
        assert!(other.lookup("AKIAROOT", None, now()).is_err());
        other.import(&root("AKIAROOT", "root-secret")).await.unwrap();
        assert_eq!(other.lookup("AKIAROOT", None, now()).unwrap().secret.expose(), "root-secret");
    }

    #[tokio::test]
    async fn temporary_credentials_end_with_their_time_and_their_role() {
        let keyring = keyring().await;
        let put = |record: Role| {
            let store = keyring.store.clone();
            async move {
                store
                    .transact(|tx| {
                        tx.put(record.clone());
                        Ok::<_, StoreError>(())
                    })
                    .await
                    .unwrap();
            }
        };
        put(role("AROAONE")).await;
        let holder = Holder::Role { role_id: "AROAONE".into(), session_name: "s".into() };
        let made = keyring.issue(&keyring.store.snapshot(), ACCOUNT, holder, session(now())).unwrap();
        let lookup =
            |id: &str, token: Option<&str>, at| keyring.lookup(id, token, at).map(|key| key.principal);
        let token = Some(made.session_token.as_str());
        let found = lookup(&made.access_key_id, token, now()).unwrap();
        assert_eq!(found, made.principal);
        assert_eq!(found.arn, "arn:aws:sts::123456789012:assumed-role/Writer/s");
        assert_eq!(found.user_id, "AROAONE:s");
        let later = now() + time::Duration::hours(1);
        assert_eq!(lookup(&made.access_key_id, token, later), Err(KeyError::Expired));
        assert_eq!(lookup(&made.access_key_id, None, now()), Err(KeyError::Unknown));
        assert_eq!(lookup("ASIAOTHER", token, now()), Err(KeyError::Unknown));
        assert_eq!(lookup("AKIAROOT", token, now()), Err(KeyError::Unknown));
        // A role that was made anew under the name is another role.
        put(role("AROATWO")).await;
        assert_eq!(lookup(&made.access_key_id, token, now()), Err(KeyError::Unknown));
    }
}
