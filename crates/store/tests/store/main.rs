//! What the store promises, seen from outside.

mod backend;
mod crash;
mod disk;
mod model;
mod records;
mod transactions;
mod watches;

use haar_store::{Resource, Store, StoreError};
use serde::{Deserialize, Serialize};

/// A record with two indexes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Disk {
    account: String,
    region: String,
    id: String,
    gib: u32,
    tags: Vec<String>,
}

impl Resource for Disk {
    const KIND: &'static str = "test.disk";
    fn account(&self) -> &str {
        &self.account
    }
    fn region(&self) -> &str {
        &self.region
    }
    fn id(&self) -> &str {
        &self.id
    }
    fn indexes(&self) -> Vec<(&'static str, String)> {
        let tags = self.tags.iter().map(|tag| ("tag", tag.clone()));
        tags.chain([("gib", self.gib.to_string())]).collect()
    }
}

/// A record of another kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Note {
    id: String,
    text: String,
}

impl Resource for Note {
    const KIND: &'static str = "test.note";
    fn account(&self) -> &'static str {
        "a"
    }
    fn region(&self) -> &'static str {
        "r"
    }
    fn id(&self) -> &str {
        &self.id
    }
}

/// A disk of account `a` in region `r`.
fn disk(id: &str, gib: u32) -> Disk {
    Disk { account: "a".into(), region: "r".into(), id: id.into(), gib, tags: Vec::new() }
}

fn note(id: &str, text: &str) -> Note {
    Note { id: id.into(), text: text.into() }
}

fn builder() -> haar_store::Builder {
    Store::builder().register::<Disk>().register::<Note>()
}

async fn in_memory() -> Store {
    builder().in_memory().await.unwrap()
}

async fn put<T: Resource>(store: &Store, record: T) {
    store
        .transact(|tx| {
            tx.put(record.clone());
            Ok::<_, StoreError>(())
        })
        .await
        .unwrap();
}

async fn delete<T: Resource>(store: &Store, id: &str) -> bool {
    store.transact(|tx| Ok::<_, StoreError>(tx.delete::<T>("a", "r", id).is_some())).await.unwrap()
}

fn get(store: &Store, id: &str) -> Option<u32> {
    store.snapshot().get::<Disk>("a", "r", id).map(|disk| disk.gib)
}

/// Ids of what a listing walks.
fn ids<'a>(entries: impl Iterator<Item = &'a haar_store::Entry<Disk>>) -> Vec<String> {
    entries.map(|disk| disk.id.clone()).collect()
}
