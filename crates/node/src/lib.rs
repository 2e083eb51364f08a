//! The agent of one machine: it makes the machine match the records.
//!
//! [`Node::start`] runs a reconciler per kind of record. Each is level-triggered: at the start, after a change, and every few minutes,
//! it looks at a record as it is and does what is missing; so a daemon that was killed anywhere goes on where it was.
//! Virtual machines are processes of their own and outlive the daemon: they are adopted, and what exists without a record is removed
//! ([`Node::collect_garbage`]).

mod backend;
mod blocks;
mod directory;
mod error;
mod host;
mod images;
mod imports;
mod instances;
mod limits;
mod merge;
mod migrations;
mod network;
mod picture;
mod qemu;
mod reserve;
mod simulated;
mod snapshots;
mod volumes;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use haar_core::reconcile;
use haar_records::ec2::{
    EbsSnapshot, Image, ImportTask, Instance, InternetGateway, Migration, NetworkInterface, RouteTable,
    SecurityGroup, Subnet, Volume, Vpc,
};
use haar_records::{GLOBAL_ACCOUNT, GLOBAL_REGION};
use haar_store::{Event, Key, Resource, Store};
use ipnet::Ipv4Net;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

pub use directory::InstanceProfiles;
pub use error::Error;
pub use haar_guest::{Credentials, Profile, Role};
pub use migrations::{Identity, MigrationStatus, Progress as MigrationProgress, Reception};
pub use qemu::UEFI_FIRMWARE;

use crate::backend::Backend;
use crate::host::Host;
use crate::images::Images;
use crate::imports::Imports;
use crate::instances::Instances;
use crate::migrations::Migrations;
use crate::network::{Network, Networks};
use crate::qemu::Qemu;
use crate::simulated::Simulated;
use crate::snapshots::Snapshots;
use crate::volumes::Volumes;

/// How long runs that have begun may go on when the daemon stops. They are repeated by the next daemon.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// What the node is told once.
#[derive(Debug, Clone)]
pub struct Config {
    /// The daemon's state folder.
    pub state_dir: PathBuf,
    /// Prefix of what has a name of its own on the machine, as `haar`.
    pub name: String,
    /// The pool of public addresses.
    pub public_pool: Ipv4Net,
    /// The account that owns the machine images of this host.
    pub account: String,
    /// What other daemons know this one by.
    pub identity: Identity,
    /// How instances are run.
    pub compute: Compute,
    /// Opens the default keys of accounts.
    pub sealer: haar_core::Sealer,
    /// Folders of this machine from which every account may import disks.
    pub import_folders: Vec<PathBuf>,
}

/// What the daemon does for guests besides the node's own.
#[derive(Clone, Default)]
pub struct ForGuests {
    /// Gives instances credentials of their roles; without it they have none.
    pub profiles: Option<Arc<dyn InstanceProfiles>>,
    /// Where the connections of guests to the API go; without it they have no way to the API.
    pub api: Option<tokio::sync::mpsc::Sender<haar_guest::Caller>>,
}

/// How instances are run.
#[derive(Debug, Clone)]
pub enum Compute {
    /// As virtual machines.
    Qemu {
        /// The QEMU program.
        binary: PathBuf,
        /// What runs guests.
        accel: haar_vm::Accel,
    },
    /// Not at all: records change state as if machines ran, and say so.
    Simulated,
}

/// The running agent.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    store: Store,
    images: haar_image::Library,
    image_states: reconcile::Handle<Image>,
    imports: reconcile::Handle<ImportTask>,
    guests: Guests,
    /// None where compute is simulated.
    real: Option<Real>,
    host: Host,
}

/// The reconcilers of what a backend runs.
struct Guests {
    instances: reconcile::Handle<Instance>,
    volumes: reconcile::Handle<Volume>,
    snapshots: reconcile::Handle<EbsSnapshot>,
}

impl Guests {
    /// With so many instances at a time, and so many volumes and as many snapshots.
    fn start<B: Backend>(
        store: &Store,
        host: &Host,
        backend: &Arc<B>,
        instances: usize,
        disks: usize,
    ) -> Result<Self, Error> {
        let machines = Instances::new(store.clone(), backend.clone(), host.clone());
        let volumes = Volumes::new(store.clone(), backend.clone());
        let snapshots = Snapshots::new(store.clone(), backend.clone());
        Ok(Self {
            instances: reconcile::start(store, machines, at_a_time(instances))?,
            volumes: reconcile::start(store, volumes, at_a_time(disks))?,
            snapshots: reconcile::start(store, snapshots, at_a_time(disks))?,
        })
    }
}

/// What there is where virtual machines run.
struct Real {
    qemu: Arc<Qemu>,
    networks: reconcile::Handle<Vpc>,
    migrations: Arc<Migrations>,
    moving: reconcile::Handle<Migration>,
}

fn at_a_time(concurrency: usize) -> reconcile::Options {
    reconcile::Options { concurrency, ..reconcile::Options::default() }
}

impl Config {
    fn console_dir(&self) -> PathBuf {
        self.state_dir.join("console")
    }

    /// What accounts have uploaded: a folder for each.
    #[must_use]
    pub fn uploads(&self) -> PathBuf {
        self.state_dir.join("uploads")
    }

    fn driver(&self) -> haar_net::Config {
        haar_net::Config { name: self.name.clone(), public_pool: self.public_pool }
    }
}

impl Node {
    /// Adopts what runs, removes what has no record, and begins to reconcile.
    ///
    /// # Errors
    /// What keeps a driver from opening its folder, or the store from being read.
    pub async fn start(config: Config, for_guests: ForGuests, store: Store) -> Result<Self, Error> {
        Self::start_on(Host::default(), config, for_guests, store).await
    }

    /// As [`Node::start`] and [`Node::go_down`], with nothing in between.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub async fn start_going_down(config: Config, store: Store, grace: Duration) -> Result<Self, Error> {
        let host = Host::default();
        host.go_down(grace);
        Self::start_on(host, config, ForGuests::default(), store).await
    }

    async fn start_on(
        host: Host,
        config: Config,
        for_guests: ForGuests,
        store: Store,
    ) -> Result<Self, Error> {
        let images = haar_image::Library::open(config.state_dir.join("images"))?;
        images::sync(&store, &images, &config.account).await?;
        let image_states =
            reconcile::start(&store, Images::new(store.clone()), reconcile::Options::default())?;
        Images::follow_snapshots(&store, &image_states)?;
        imports::sweep(&config.state_dir, &store)?;
        let (guests, real) = match &config.compute {
            Compute::Simulated => (Guests::start(&store, &host, &Arc::new(Simulated), 64, 64)?, None),
            Compute::Qemu { binary, accel } => {
                let network = Arc::new(Network::new(&config, for_guests, store.clone()).await?);
                let qemu =
                    Qemu::new(&config, binary, *accel, images.clone(), network.clone(), store.clone())?;
                let qemu = Arc::new(qemu);
                let migrations = Migrations::new(&config, store.clone(), qemu.clone(), network.clone());
                migrations.give_up_stale().await?;
                let moving = reconcile::Options {
                    backoff: Duration::from_millis(200),
                    max_backoff: Duration::from_secs(5),
                    ..at_a_time(8)
                };
                let moving = reconcile::start(&store, migrations::Reconcile(migrations.clone()), moving)?;
                let guests = Guests::start(&store, &host, &qemu, 8, 4)?;
                qemu.report_to(&guests.instances);
                qemu.merge_layers();
                let networks = reconcile::start(&store, Networks::new(network), at_a_time(4))?;
                follow_vpc_parts(&networks)?;
                (guests, Some(Real { qemu, networks, migrations, moving }))
            }
        };
        let imports = Imports::new(&config, store.clone(), real.as_ref().map(|real| real.qemu.clone()));
        // Those that wait for their turn take part in it.
        let imports = reconcile::start(&store, imports, at_a_time(256))?;
        let inner = Inner { config, store, images, image_states, imports, guests, real, host };
        let node = Self { inner: Arc::new(inner) };
        node.collect_garbage().await?;
        Ok(node)
    }

    /// Reads the image library again, so that what the command line put there can be launched.
    ///
    /// # Errors
    /// What kept the library from being read or the store from being written.
    pub async fn rescan_images(&self) -> Result<(), Error> {
        images::sync(&self.inner.store, &self.inner.images, &self.inner.config.account).await
    }

    /// The images that accounts have made of instances and snapshots, those of every account and region.
    #[must_use]
    pub fn images_of_accounts(&self) -> Vec<Image> {
        let records = self.inner.store.snapshot();
        let images = records.list_all::<Image>().filter(|image| !image.is_of_library());
        images.map(|image| Image::clone(image)).collect()
    }

    /// The user of an instance that has the key pair's key.
    #[must_use]
    pub fn default_user(&self, instance_id: &str) -> Option<String> {
        let records = self.inner.store.snapshot();
        let spec = &records.list_all::<Instance>().find(|instance| instance.id == instance_id)?.spec;
        // Records of old do not say it; their images are of the library.
        let image = || records.get::<Image>(GLOBAL_ACCOUNT, GLOBAL_REGION, &spec.image_id);
        spec.default_user.clone().or_else(|| Some(image()?.default_user.clone()))
    }

    /// The end of an instance's serial console, at most `most` bytes, with the time of its last output; none when it has not
    /// printed yet.
    ///
    /// # Errors
    /// What the system said.
    pub fn console(
        &self,
        instance_id: &str,
        most: u64,
    ) -> Result<Option<(Vec<u8>, time::OffsetDateTime)>, Error> {
        backend::console(&self.inner.config.console_dir(), instance_id, most)
    }

    /// Whether a volume's disk was found to be damaged; none when there is no disk.
    ///
    /// # Errors
    /// What kept it from being looked at.
    pub fn is_damaged(&self, volume_id: &str) -> Result<Option<bool>, Error> {
        self.qemu().map_or(Ok(None), |qemu| qemu.is_damaged(volume_id))
    }

    /// None where compute is simulated.
    fn qemu(&self) -> Option<&Qemu> {
        self.inner.real.as_ref().map(|real| &*real.qemu)
    }

    fn disks(&self) -> Result<&Qemu, Error> {
        let none = || Error::Inconsistent("no disks are made: compute is simulated".to_owned());
        self.qemu().ok_or_else(none)
    }

    /// The parts of a snapshot, from and to in bytes, that hold data.
    ///
    /// # Errors
    /// What kept them from being found.
    pub async fn written_parts(&self, snapshot: &EbsSnapshot) -> Result<Vec<(u64, u64)>, Error> {
        Ok(blocks::parts(&self.disks()?.map_snapshot(snapshot).await?, None, false))
    }

    /// The parts of a snapshot that were written since an earlier one; none if it does not stand on it.
    ///
    /// # Errors
    /// What kept them from being found.
    pub async fn changed_parts(
        &self,
        first: &EbsSnapshot,
        second: &EbsSnapshot,
    ) -> Result<Option<Vec<(u64, u64)>>, Error> {
        let qemu = self.disks()?;
        let Some(depth) = qemu.depth_of(first, second)? else { return Ok(None) };
        Ok(Some(blocks::parts(&qemu.map_snapshot(second).await?, Some(depth), true)))
    }

    /// The parts of a snapshot that were uploaded.
    ///
    /// # Errors
    /// What kept them from being found.
    pub async fn uploaded_parts(&self, snapshot: &EbsSnapshot) -> Result<Vec<(u64, u64)>, Error> {
        let qemu = self.disks()?;
        qemu.make_upload(snapshot).await?;
        Ok(blocks::parts(&qemu.map_snapshot(snapshot).await?, Some(1), true))
    }

    /// Bytes of a snapshot.
    ///
    /// # Errors
    /// What kept them from being read.
    pub async fn read_snapshot(
        &self,
        snapshot: &EbsSnapshot,
        offset: u64,
        length: usize,
    ) -> Result<Vec<u8>, Error> {
        self.disks()?.read_snapshot(snapshot, offset, length).await
    }

    /// Writes to a snapshot that is being uploaded.
    ///
    /// # Errors
    /// What kept it from being written.
    pub async fn write_snapshot(
        &self,
        snapshot: &EbsSnapshot,
        offset: u64,
        data: &[u8],
    ) -> Result<(), Error> {
        self.disks()?.write_snapshot(snapshot, offset, data).await
    }

    /// Puts what was uploaded on stable storage.
    ///
    /// # Errors
    /// What kept it from being there.
    pub async fn finish_upload(&self, snapshot: &EbsSnapshot) -> Result<(), Error> {
        self.disks()?.finish_upload(snapshot).await
    }

    /// What an instance's display shows, as JPEG; with `wake_up`, after a key was pressed. None where it has no display.
    ///
    /// # Errors
    /// What kept it from being read.
    pub async fn screen(&self, instance_id: &str, wake_up: bool) -> Result<Option<Vec<u8>>, Error> {
        let Some(qemu) = self.qemu() else { return Ok(None) };
        let Some(ppm) = qemu.screen(instance_id, wake_up).await? else { return Ok(None) };
        let encoded = tokio::task::spawn_blocking(move || picture::jpeg(&ppm)).await;
        encoded.map_err(|error| Error::Inconsistent(error.to_string()))?.map(Some)
    }

    /// From now on the host goes down: guests are asked to shut down, and ended when they have not after `grace`. They stay
    /// `running` in their records, and are started again by the next daemon, or after [`Node::stay_up`].
    pub fn go_down(&self, grace: Duration) {
        if self.inner.real.is_some() {
            self.inner.host.go_down(grace);
            self.inner.guests.instances.poke_all();
        }
    }

    /// The host does not go down: guests that were shut down for it are started again.
    pub fn stay_up(&self) {
        self.inner.host.stay();
        self.inner.guests.instances.poke_all();
    }

    /// The instances that have a machine.
    ///
    /// # Errors
    /// What kept them from being listed.
    pub fn machines(&self) -> Result<Vec<String>, Error> {
        self.qemu().map_or(Ok(Vec::new()), Qemu::machines)
    }

    /// Removes what is on the machine under this daemon's name and has no record.
    ///
    /// # Errors
    /// What kept something from being listed; what cannot be removed is logged and tried again the next time.
    pub async fn collect_garbage(&self) -> Result<(), Error> {
        match self.qemu() {
            Some(qemu) => qemu.collect_garbage().await,
            None => Ok(()),
        }
    }

    fn migrations(&self) -> Result<&Arc<Migrations>, Error> {
        let migrations = self.inner.real.as_ref().map(|real| &real.migrations);
        migrations.ok_or_else(|| Error::Refused("simulated instances cannot move".into()))
    }

    /// Makes an invitation for one guest of another daemon; this one's endpoint is at `address`.
    ///
    /// # Errors
    /// [`Error::Refused`] where no guests run.
    pub fn invite(&self, address: &str) -> Result<String, Error> {
        Ok(self.migrations()?.invite(address))
    }

    /// Begins to move a running instance to another daemon by its invitation, and gives the migration's id. It goes on by itself; if the
    /// instance has not moved by `timeout`, it stays.
    ///
    /// # Errors
    /// [`Error::Refused`] if the instance cannot move.
    pub async fn migrate(
        &self,
        instance: &str,
        invitation: &str,
        timeout: Option<Duration>,
    ) -> Result<String, Error> {
        self.migrations()?.begin(instance, invitation, timeout).await
    }

    /// What is known of a migration, or of all.
    ///
    /// # Errors
    /// [`Error::Refused`] where no guests run.
    pub fn migration_status(&self, id: Option<&str>) -> Result<Vec<MigrationStatus>, Error> {
        Ok(self.migrations()?.status(id))
    }

    /// Has a guest stay that is being copied.
    ///
    /// # Errors
    /// [`Error::Refused`] if the migration is not at that point.
    pub fn cancel_migration(&self, migration: &str) -> Result<(), Error> {
        self.migrations()?.cancel(migration)
    }

    /// Takes back a guest whose receiving daemon will never say whether it has it. Gives that daemon's host and port if it could not be
    /// asked: should it have the guest after all, the one here is shut down when it can.
    ///
    /// # Errors
    /// [`Error::Refused`] if the migration is not at that point, or the other daemon says that it has the guest.
    pub async fn take_back(&self, migration: &str) -> Result<Option<String>, Error> {
        self.migrations()?.take_back(migration).await
    }

    /// Serves other daemons' connections, which begin TLS. Where no guests run, they end.
    pub fn serve_peers(&self, connections: mpsc::Receiver<TcpStream>, reception: Arc<dyn Reception>) {
        if let Ok(migrations) = self.migrations() {
            tokio::spawn(migrations.clone().serve(connections, reception));
        }
    }

    /// Ends the reconcilers. What runs, runs on.
    pub async fn stop(&self) {
        let Inner { image_states, imports, guests, real, .. } = &*self.inner;
        if let Some(real) = real {
            // What is being decided may take longer; the next daemon goes on with it.
            let _ = tokio::time::timeout(STOP_GRACE, real.migrations.stop()).await;
            real.moving.stop(STOP_GRACE).await;
            real.networks.stop(STOP_GRACE).await;
        }
        imports.stop(Duration::ZERO).await;
        guests.instances.stop(STOP_GRACE).await;
        guests.volumes.stop(STOP_GRACE).await;
        guests.snapshots.stop(STOP_GRACE).await;
        image_states.stop(STOP_GRACE).await;
    }
}

/// Has a VPC's network reconciled when anything in it changes.
fn follow_vpc_parts(networks: &reconcile::Handle<Vpc>) -> Result<(), Error> {
    fn keys<U: Resource>(event: &Event<U>, vpc_id: impl Fn(&U) -> Option<String>) -> Vec<Key> {
        // A deletion does not tell the VPC; the change that made the record deletable did.
        let Event::Put(entry) = event else { return Vec::new() };
        let vpc_id = vpc_id(&entry.value);
        vpc_id
            .and_then(|id| Key::new(Vpc::KIND, entry.value.account(), entry.value.region(), &id).ok())
            .into_iter()
            .collect()
    }
    networks.follow::<NetworkInterface>(|event| keys(event, |r| Some(r.vpc_id.clone())))?;
    networks.follow::<SecurityGroup>(|event| keys(event, |r| Some(r.vpc_id.clone())))?;
    networks.follow::<Subnet>(|event| keys(event, |r| Some(r.vpc_id.clone())))?;
    networks.follow::<RouteTable>(|event| keys(event, |r| Some(r.vpc_id.clone())))?;
    networks.follow::<InternetGateway>(|event| keys(event, |r| r.vpc_id.clone()))?;
    networks.follow::<Migration>(|event| keys(event, |r| Some(r.vpc_id.clone())))?;
    networks.follow::<Instance>(|event| keys(event, |r| Some(r.spec.vpc_id.clone())))?;
    Ok(())
}

/// Ends everything that runs under this configuration and removes it from the machine: machines, networks. Disks, images and records
/// stay. No daemon may run meanwhile.
///
/// # Errors
/// What could not be removed.
pub async fn teardown(config: &Config) -> Result<(), Error> {
    qemu::teardown(config).await
}
