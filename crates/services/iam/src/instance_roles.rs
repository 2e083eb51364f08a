//! Credentials of the roles of instances (IAM User Guide, "Use an IAM role to grant permissions to applications running on Amazon EC2
//! instances").

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use haar_api::{Session, SessionOrigin};
use haar_policy::{Attached, Policies, PolicyKind, Principal, Request, Resource, ResourcePolicy};
use haar_records::ec2::{Instance, InstanceState};
use haar_records::iam::{InstanceProfile, REGION, Role, name_id};
use haar_store::{Snapshot, Store};
use time::{Duration, OffsetDateTime};

use crate::caller::Documents;
use crate::keyring::{Keyring, RoleCredentials};

/// How long credentials are good.
const LIFE: Duration = Duration::hours(6);

/// How long credentials are still good when others are given instead: the SDKs ask for new ones within the last hour.
const RENEW: Duration = Duration::hours(2);

/// Gives credentials of their roles to instances.
///
/// Which profile an instance has, which role is in it, and whether EC2 may assume that one is read whenever a guest asks: a profile that
/// is taken away is gone with the guest's next question. Credentials that were given out live until they expire, or until the role is
/// gone.
pub struct InstanceRoles {
    store: Store,
    keyring: Keyring,
    documents: Documents,
    /// What was given last, by instance.
    given: Mutex<HashMap<String, Given>>,
}

/// Credentials that an instance was given.
struct Given {
    /// Unique id of the role.
    role_id: String,
    issued: OffsetDateTime,
    credentials: RoleCredentials,
}

impl Given {
    /// Whether they are still to be shown: those of the role that it is now, and not soon to expire.
    fn are_good(&self, role_id: &str, now: OffsetDateTime) -> bool {
        self.role_id == role_id && self.credentials.expires - now > RENEW
    }
}

/// The profile of an instance.
pub struct Profile {
    /// Its ARN.
    pub arn: String,
    /// Its unique id.
    pub id: String,
    /// Since when the instance has it.
    pub since: OffsetDateTime,
    /// The name of the role in it, and credentials of the role with the time at which they were given; none when the role's trust policy
    /// does not let EC2 assume it.
    pub role: Option<(String, Option<(RoleCredentials, OffsetDateTime)>)>,
}

impl InstanceRoles {
    /// Over the records of a store.
    #[must_use]
    pub fn new(store: Store, keyring: Keyring) -> Self {
        Self { store, keyring, documents: Documents::default(), given: Mutex::default() }
    }

    /// The profile of an instance as it is now.
    #[must_use]
    pub fn profile(&self, account: &str, region: &str, instance_id: &str) -> Option<Profile> {
        let snapshot = self.store.snapshot();
        let instance = snapshot.get::<Instance>(account, region, instance_id)?;
        let association = instance.spec.instance_profile.as_ref()?;
        let name = association.arn.rsplit('/').next()?;
        let profile = snapshot.get::<InstanceProfile>(account, REGION, &name_id(name))?;
        // A profile of the name that was made later is another profile.
        if profile.profile_id != association.profile_id {
            return None;
        }
        let role = profile.role.as_ref().and_then(|role| snapshot.get::<Role>(account, REGION, role));
        let role = role.map(|role| (role.name.clone(), self.credentials(&snapshot, &role, &instance)));
        Some(Profile {
            arn: association.arn.clone(),
            id: association.profile_id.clone(),
            since: association.since,
            role,
        })
    }

    fn credentials(
        &self,
        snapshot: &Snapshot,
        role: &Role,
        instance: &Instance,
    ) -> Option<(RoleCredentials, OffsetDateTime)> {
        if !self.may_assume(role) {
            return None;
        }
        let now = OffsetDateTime::now_utc();
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(given) = given.get(&instance.id).filter(|given| given.are_good(&role.role_id, now)) {
            return Some((given.credentials.clone(), given.issued));
        }
        let arn = format!("arn:aws:ec2:{}:{}:instance/{}", instance.region, instance.account, instance.id);
        let mut session = Session::new(SessionOrigin::AssumeRole, now, LIFE);
        session.keys.insert("ec2:SourceInstanceARN".to_owned(), vec![arn]);
        let made = self.keyring.role_credentials(&role.account, &role.role_id, &instance.id, session)?;
        // What was given to instances that are gone is forgotten.
        given.retain(|id, _| {
            let found = snapshot.get::<Instance>(&instance.account, &instance.region, id);
            found.is_some_and(|found| found.status.state != InstanceState::Terminated)
        });
        let latest = Given { role_id: role.role_id.clone(), issued: now, credentials: made.clone() };
        given.insert(instance.id.clone(), latest);
        Some((made, now))
    }

    /// Whether the role's trust policy lets EC2 assume it.
    fn may_assume(&self, role: &Role) -> bool {
        let policy = self.documents.read(PolicyKind::Trust, &role.assume_role_policy_document);
        let trust = Attached::inline(Arc::clone(&policy), "AssumeRolePolicyDocument");
        let principal = Principal::service("ec2.amazonaws.com");
        let request = Request {
            principal: &principal,
            policies: Policies::default(),
            action: "sts:AssumeRole",
            keys: &(),
        };
        let arn = role.arn();
        request.evaluate(&Resource::new(&arn).with_policy(ResourcePolicy::RoleTrust(&trust))).is_allowed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_renewed_before_they_end_and_when_the_role_is_another() {
        let issued = OffsetDateTime::UNIX_EPOCH;
        let credentials = RoleCredentials {
            access_key_id: String::new(),
            secret_access_key: String::new(),
            session_token: String::new(),
            expires: issued + LIFE,
        };
        let given = Given { role_id: "AROAONE".into(), issued, credentials };
        assert!(given.are_good("AROAONE", issued + Duration::minutes(239)));
        assert!(!given.are_good("AROAONE", issued + Duration::hours(4)));
        assert!(!given.are_good("AROATWO", issued));
    }
}
