//! What the unit tests of this crate share.

use std::pin::Pin;
use std::sync::Arc;

use haar_api::Context;
use haar_records::ec2::{SecurityGroup, Vpc};
use haar_store::{Store, Tx};

use crate::error::Result;
use crate::model::Filter;
use crate::{Capacity, Config, ConsoleOutput, DiskCheck, Handlers, Host, Scope, Screen, defaults, ids};

/// Where the tests act.
pub const SCOPE: Scope<'static> = Scope { account: "123456789012", region: "eu-central-1" };

/// An empty store in memory.
pub async fn store() -> Store {
    let builder = haar_records::iam::register(haar_core::register(Store::builder()));
    haar_records::ec2::register(builder).in_memory().await.unwrap()
}

/// A request to [`SCOPE`].
pub fn context() -> Context {
    Context::new(SCOPE.account, SCOPE.region)
}

/// Commits what `body` writes.
pub async fn write<R>(store: &Store, body: impl FnMut(&mut Tx) -> Result<R>) -> Result<R> {
    haar_core::transact(store, &context(), body).await
}

/// Handlers over an empty store, with what the machine gives left out.
pub async fn handlers() -> Handlers {
    struct NoHost;

    impl Host for NoHost {
        fn console_output(&self, _: &str) -> Option<ConsoleOutput> {
            None
        }

        fn check_disk(&self, _: &str) -> DiskCheck {
            DiskCheck::Unknown
        }

        fn screen(self: Arc<Self>, _: String, _: bool) -> Pin<Box<dyn Future<Output = Screen> + Send>> {
            Box::pin(std::future::ready(Screen::None))
        }
    }

    let config = Config {
        public_pool: "198.18.0.0/24".parse().unwrap(),
        capacity: Capacity::default(),
        sealer: haar_core::Sealer::new(&[7; 32]),
        owner: SCOPE.account.into(),
    };
    Handlers::new(store().await, config, Arc::new(NoHost)).await.unwrap()
}

/// The error code of a refused request.
pub fn code<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.unwrap_err().code.into_owned()
}

/// A filter with one value.
pub fn filter(name: &str, value: &str) -> Vec<Filter> {
    vec![Filter { name: Some(name.into()), values: vec![value.into()] }]
}

/// A VPC that is not the default one, with a security group `name`; their ids.
pub async fn another_vpc(handlers: &Handlers, name: &str) -> (String, String) {
    write(&handlers.store, |tx| {
        let default = defaults::ensure(tx, SCOPE)?;
        let vpc = Vpc { id: ids::VPC.generate(), is_default: false, ..Vpc::clone(&*default) };
        let group = SecurityGroup {
            account: SCOPE.account.into(),
            region: SCOPE.region.into(),
            id: ids::SECURITY_GROUP.generate(),
            name: name.into(),
            description: "a group".into(),
            vpc_id: vpc.id.clone(),
            rules: Vec::new(),
            tags: haar_records::Tags::new(),
        };
        let found = (vpc.id.clone(), group.id.clone());
        tx.put(vpc);
        tx.put(group);
        Ok(found)
    })
    .await
    .unwrap()
}
