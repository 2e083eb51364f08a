use std::fmt;
use std::sync::Arc;

use crate::table::{AnyEntry, AnyTable, Entry, Range, Registry, Table};
use crate::{Key, Resource, Revision};

/// All records at one revision. Taking and cloning one is a pointer copy; it never changes and blocks nobody.
///
/// # Panics
/// Every method that names a record type panics when the type was not registered with the store, which is a mistake in
/// the program and not in its input.
#[derive(Clone)]
pub struct Snapshot(pub(crate) Arc<State>);

/// What a snapshot points to.
#[derive(Clone)]
pub(crate) struct State {
    pub(crate) revision: Revision,
    pub(crate) registry: Arc<Registry>,
    /// In the order of the registry.
    pub(crate) tables: Vec<Arc<dyn AnyTable>>,
}

impl State {
    pub(crate) fn new(registry: Arc<Registry>) -> Self {
        Self { revision: Revision::ZERO, tables: registry.tables(), registry }
    }

    fn table_mut(&mut self, position: usize) -> &mut dyn AnyTable {
        let table = &mut self.tables[position];
        if Arc::get_mut(table).is_none() {
            *table = table.copy();
        }
        Arc::get_mut(table).expect("a fresh copy has one owner")
    }

    pub(crate) fn put(&mut self, position: usize, key: &Key, entry: AnyEntry) {
        self.table_mut(position).put(key, entry);
    }

    pub(crate) fn remove(&mut self, position: usize, key: &Key) {
        self.table_mut(position).remove(key);
    }
}

impl Snapshot {
    /// The revision of the latest commit that it holds.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.0.revision
    }

    /// The record with this id.
    #[must_use]
    pub fn get<T: Resource>(&self, account: &str, region: &str, id: &str) -> Option<Entry<T>> {
        self.table::<T>().get(&Key::new(T::KIND, account, region, id).ok()?).cloned()
    }

    /// The record under this key, which must be of kind `T`.
    #[must_use]
    pub fn get_key<T: Resource>(&self, key: &Key) -> Option<Entry<T>> {
        self.table::<T>().get(key).cloned()
    }

    /// The records of an account and region, sorted by id.
    pub fn list<T: Resource>(
        &self,
        account: &str,
        region: &str,
    ) -> impl Iterator<Item = &Entry<T>> + use<'_, T> {
        self.table::<T>().range(&Range::of_scope(T::KIND, account, region))
    }

    /// The records of an account and region whose id sorts after `id`, sorted by id.
    pub fn list_after<T: Resource>(
        &self,
        account: &str,
        region: &str,
        id: &str,
    ) -> impl Iterator<Item = &Entry<T>> + use<'_, T> {
        self.table::<T>().after(&Range::of_scope(T::KIND, account, region), id)
    }

    /// The records of every account and region, sorted by account, region and id.
    pub fn list_all<T: Resource>(&self) -> impl Iterator<Item = &Entry<T>> + use<'_, T> {
        self.table::<T>().range(&Range::of_kind(T::KIND))
    }

    /// The records of an account and region that have `value` in `index` ([`Resource::indexes`]), sorted by id.
    pub fn by_index<T: Resource>(
        &self,
        account: &str,
        region: &str,
        index: &str,
        value: &str,
    ) -> impl Iterator<Item = &Entry<T>> + use<'_, T> {
        self.table::<T>().range(&Range::of_index(account, region, index, value))
    }

    /// How many records of the kind there are in all accounts and regions.
    #[must_use]
    pub fn count<T: Resource>(&self) -> usize {
        self.table::<T>().len()
    }

    /// What differs between an older snapshot of the same store and this one, sorted by account, region and id: each record as
    /// it was and as it is. Records that neither has changed cost next to nothing, however many they are.
    pub fn changes_since<'s, T: Resource>(
        &'s self,
        older: &'s Snapshot,
    ) -> impl Iterator<Item = (Option<&'s Entry<T>>, Option<&'s Entry<T>>)> {
        self.table::<T>().changes_since(older.table::<T>())
    }

    fn table<T: Resource>(&self) -> &Table<T> {
        self.0
            .registry
            .position(T::KIND)
            .and_then(|position| self.0.tables[position].as_any().downcast_ref())
            .unwrap_or_else(|| panic!("records of kind {:?} were not registered with the store", T::KIND))
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").field("revision", &self.revision()).finish_non_exhaustive()
    }
}
