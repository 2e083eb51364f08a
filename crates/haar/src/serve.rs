//! The daemon: what it opens, in which order, and how it stops.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use haar_access::Access;
use haar_api::endpoint::RouteHandler;
use haar_api::{Body, Endpoint};
use haar_ebs::{HostFuture, Part};
use haar_iam::{Documents, Keyring, Sealer};
use haar_node::{Compute, Node};
use haar_records::ec2::{EbsSnapshot, Encryption, Instance};
use haar_store::{Store, Tx};
use haar_trail::Trail;
use hyper::body::Bytes;
use hyper::{Method, Request, Response, StatusCode};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;
use time::format_description::well_known::Rfc3339;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{self, Config};
use crate::credentials::Credentials;
use crate::error::{Error, Result};
use crate::state::{ADMIN_HEADER, StateDir, write_private};
use crate::uploads::{self, Uploads};

/// The QEMU program.
const QEMU: &str = "qemu-system-x86_64";

/// Where commands ask for migrations.
const MIGRATIONS: &str = "/_haar/migrations/";

/// How much of an instance's console GetConsoleOutput gives ("GetConsoleOutput", EC2 API Reference).
const CONSOLE_OUTPUT: u64 = 64 * 1024;

/// Claims the state folder and runs the daemon until it is asked to stop.
pub fn run(config: &Config) -> Result<()> {
    runtime()?.block_on(serve(config))
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(Error::io("start", "the runtime"))
}

/// Runs the daemon until SIGTERM or SIGINT.
async fn serve(config: &Config) -> Result<()> {
    let state = StateDir::new(&config.state_dir);
    state.create()?;
    let claim = state.claim()?;
    let keys = Credentials::load_or_create(&state)?;
    let stop = stop_signal()?;

    let listener = TcpListener::bind(config.listen).await;
    let listener =
        listener.map_err(|e| Error::Setting(format!("cannot listen on {}: {e}", config.listen)))?;
    let listen = listener.local_addr().map_err(Error::io("examine", "the listening socket"))?;

    let store = open_store(&state).await?;
    let sweeper = tokio::spawn(haar_core::sweep(store.clone()));
    let sealer = Sealer::new(state.sealing_key()?);
    let keyring = keyring(&state, &store, sealer.clone()).await?;
    let usage = tokio::spawn(keyring.clone().record_usage());
    let (callers, connections) = tokio::sync::mpsc::channel(64);
    let roles = haar_iam::InstanceRoles::new(store.clone(), keyring.clone());
    let for_guests = haar_node::ForGuests { profiles: Some(Arc::new(Profiles(roles))), api: Some(callers) };
    let ebs_sealer = ebs_sealer(&state)?;
    let node_config = node_config(config, &keys, &state, ebs_sealer.clone()).await?;
    let uploads = node_config.uploads();
    let capacity = config.capacity(host_memory_mib(), overhead_mib(&node_config.compute));
    let node = Node::start(node_config, for_guests, store.clone()).await.map_err(Error::daemon)?;

    let ebs = haar_ebs::Handlers::new(store.clone(), ebs_sealer.clone(), Arc::new(Host(node.clone())))
        .await
        .map_err(Error::daemon)?;
    let ssm = haar_ssm::Handlers::new(store.clone()).await.map_err(Error::daemon)?;
    let account = keys.account_id.clone();
    let reception = Reception { account, capacity, sealer: ebs_sealer.clone() };
    let uploads = Uploads::open(uploads).map_err(Error::io("read", "the uploads"))?;
    let ec2 = haar_ec2::Config {
        public_pool: config.public_pool,
        capacity,
        sealer: ebs_sealer,
        owner: keys.account_id.clone(),
    };
    let ec2 = haar_ec2::Handlers::new(store.clone(), ec2, Arc::new(Host(node.clone())))
        .await
        .map_err(Error::daemon)?;
    let documents = Arc::new(Documents::default());
    let iam = haar_iam::iam::Handlers::new(store.clone(), keyring.clone(), documents.clone());
    let iam = iam.await.map_err(Error::daemon)?;
    let sts = haar_iam::sts::Handlers::new(store.clone(), keyring.clone(), documents);
    let trail = Trail::open(&state.trail()).map_err(Error::io("open", state.trail()))?;
    let daemon = claim.announce(config, listen)?;
    let (tls, peers) = tokio::sync::mpsc::channel(64);
    node.serve_peers(peers, Arc::new(reception));
    let endpoint = Endpoint::new(
        haar_records::ec2::REGIONS.iter().map(|region| region.name),
        Arc::new(keyring.clone()),
        Arc::new(access(&store, sealer)),
    )
    .recorder(trail.clone())
    .service(haar_ssm::model::SsmService(ssm))
    .connections(connections)
    .tls(tls)
    .service(haar_ebs::model::EbsService(ebs))
    .service(haar_ec2::model::Ec2Service(ec2))
    .service(haar_iam::iam::model::IamService(iam))
    .service(haar_iam::sts::model::StsService(sts))
    .route(
        "/_haar/",
        admin(Admin { node: node.clone(), uploads, state, keyring, token: daemon.admin_token.clone() }),
    );
    tracing::info!(endpoint = daemon.endpoint(), region = config.region, "haar {} answers", daemon.version);
    let served = endpoint.serve(listener, stop).await;

    node.stop().await;
    sweeper.abort();
    usage.abort();
    store.close().await;
    trail.sync();
    served.map_err(Error::io("start", "the threads that serve requests"))?;
    tracing::info!("haar stopped");
    Ok(())
}

/// What seals the default keys of accounts for EBS.
fn ebs_sealer(state: &StateDir) -> Result<haar_core::Sealer> {
    Ok(haar_core::Sealer::derived(&state.sealing_key()?, "ebs"))
}

/// What other daemons know this one by, as long as it has its state folder.
fn identity(state: &StateDir) -> Result<haar_node::Identity> {
    let key = haar_core::Sealer::derived_key(&state.sealing_key()?, "migrations");
    Ok(haar_node::Identity::new(&key))
}

async fn open_store(state: &StateDir) -> Result<Store> {
    let records = haar_records::ec2::register(haar_core::register(Store::builder()));
    let records = haar_records::iam::register(records);
    let database = state.path().join("state.db");
    let store = records.open_sqlite(&database).await;
    store.map_err(|e| Error::Malformed { path: database, reason: e.to_string() })
}

/// Shuts all guests down as [`Node::go_down`] does, where no daemon runs that could; those that are left after `patience`.
pub fn stop_guests(config: &Config, grace: Duration, patience: Duration) -> Result<Vec<String>> {
    runtime()?.block_on(async {
        let state = StateDir::new(&config.state_dir);
        let _claim = state.claim()?;
        let keys = Credentials::load_or_create(&state)?;
        let store = open_store(&state).await?;
        let node_config = node_config(config, &keys, &state, ebs_sealer(&state)?).await?;
        let node = Node::start_going_down(node_config, store.clone(), grace).await.map_err(Error::daemon)?;
        let begin = Instant::now();
        let left = loop {
            let left = node.machines().map_err(Error::daemon)?;
            if left.is_empty() || begin.elapsed() > patience {
                break left;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        node.stop().await;
        store.close().await;
        Ok(left)
    })
}

async fn node_config(
    config: &Config,
    keys: &Credentials,
    state: &StateDir,
    sealer: haar_core::Sealer,
) -> Result<haar_node::Config> {
    let compute = match config.compute {
        config::Compute::Simulated => Compute::Simulated,
        config::Compute::Qemu => {
            let binary = find_program(QEMU);
            Compute::Qemu { accel: accelerator(state, &binary).await, binary }
        }
    };
    Ok(haar_node::Config {
        state_dir: config.state_dir.clone(),
        name: config.name.to_string(),
        public_pool: config.public_pool,
        account: keys.account_id.clone(),
        identity: identity(state)?,
        compute,
        sealer,
        import_folders: config.import_folders.clone(),
    })
}

/// Memory of the host in MiB: what the machine has or, in a container, may use.
fn host_memory_mib() -> u64 {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let text = read("/proc/meminfo");
    let total =
        text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().split(' ').next()?.parse().ok());
    let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limit = limits.into_iter().filter_map(|path| read(path).trim().parse::<u64>().ok()).min();
    let total: u64 = total.map_or(0, |kib: u64| kib >> 10);
    limit.map_or(total, |bytes| total.min(bytes >> 20))
}

/// Memory in MiB that QEMU takes besides its guest's: about 60 for itself, and under emulation as much again and more for translated
/// code.
fn overhead_mib(compute: &Compute) -> u64 {
    match compute {
        Compute::Qemu { accel: haar_vm::Accel::Kvm, .. } => 64,
        Compute::Qemu { accel: haar_vm::Accel::Tcg, .. } => 192,
        Compute::Simulated => 0,
    }
}

/// Where a program is; its bare name if it is nowhere.
fn find_program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.is_file());
    found.unwrap_or_else(|| name.into())
}

/// What a probe guest has shown of the accelerators, and of which boot and program.
#[derive(Serialize, Deserialize)]
struct Probed {
    boot_id: String,
    program: (PathBuf, u64, u64),
    probe: haar_vm::Probe,
}

/// The accelerator that runs guests: as probed since this boot with this QEMU, or else now.
///
/// Where QEMU cannot even be asked, instances say so when they are started.
async fn accelerator(state: &StateDir, binary: &Path) -> haar_vm::Accel {
    let path = state.path().join("accelerator.json");
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let modified = |metadata: &std::fs::Metadata| {
        metadata
            .modified()
            .ok()
            .and_then(|at| at.duration_since(UNIX_EPOCH).ok())
            .map_or(0, |since| since.as_secs())
    };
    let (size, changed) =
        std::fs::metadata(binary).map_or((0, 0), |metadata| (metadata.len(), modified(&metadata)));
    let program = (binary.to_owned(), size, changed);
    let known: Option<Probed> = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
    if let Some(known) = known.filter(|known| known.boot_id == boot_id && known.program == program) {
        return known.probe.accel;
    }
    match haar_vm::probe(binary).await {
        Ok(probe) => {
            match &probe.no_kvm {
                None => tracing::info!("guests run under KVM"),
                Some(why) => {
                    tracing::warn!("guests run under TCG, without acceleration: {why}; {}", why.fix());
                }
            }
            let accel = probe.accel;
            let text = serde_json::to_vec_pretty(&Probed { boot_id, program, probe })
                .expect("a probe is plain data");
            if let Err(error) = write_private(&path, &text) {
                tracing::warn!(%error, "the probe will be repeated at the next start");
            }
            accel
        }
        Err(error) => {
            tracing::error!(%error, "instances cannot be started");
            haar_vm::Accel::Tcg
        }
    }
}

/// The keys of the installation's accounts, after those of its files were taken over.
async fn keyring(state: &StateDir, store: &Store, sealer: Sealer) -> Result<Keyring> {
    let keyring = Keyring::new(store.clone(), sealer);
    import_accounts(state, &keyring).await?;
    Ok(keyring)
}

/// Takes over the accounts of the installation's files.
async fn import_accounts(state: &StateDir, keyring: &Keyring) -> Result<()> {
    for keys in Credentials::load_all(state)? {
        keyring.import(&keys.into_root_key()).await.map_err(Error::daemon)?;
    }
    Ok(())
}

/// Who may do what.
fn access(store: &Store, sealer: Sealer) -> Access {
    let directory = haar_iam::Directory::new(store.clone());
    let seal = move |account: &str, message: &str| sealer.seal_message(account, message);
    Access::new(directory.clone(), Box::new(seal))
        .service("ec2", haar_ec2::Resources(store.clone()))
        .service("ssm", ())
        .service("ebs", haar_ec2::Resources(store.clone()))
        .service("iam", directory.clone())
        .service("sts", directory)
}

/// The roles of instances, for the metadata that guests ask for.
struct Profiles(haar_iam::InstanceRoles);

impl haar_node::InstanceProfiles for Profiles {
    fn profile(&self, account: &str, region: &str, instance_id: &str) -> Option<haar_node::Profile> {
        let found = self.0.profile(account, region, instance_id)?;
        let role = found.role.map(|(name, given)| haar_node::Role {
            name,
            credentials: given.map(|(credentials, issued)| haar_node::Credentials {
                access_key_id: credentials.access_key_id,
                secret_access_key: credentials.secret_access_key,
                session_token: credentials.session_token,
                issued,
                expires: credentials.expires,
            }),
        });
        Some(haar_node::Profile { arn: found.arn, id: found.id, updated: found.since, role })
    }
}

/// What EC2 reads from the machine.
struct Host(Node);

impl haar_ec2::Host for Host {
    fn console_output(&self, instance_id: &str) -> Option<haar_ec2::ConsoleOutput> {
        match self.0.console(instance_id, CONSOLE_OUTPUT) {
            Ok(output) => output.map(|(bytes, timestamp)| haar_ec2::ConsoleOutput { bytes, timestamp }),
            Err(error) => {
                tracing::warn!(instance = instance_id, %error, "cannot read the console");
                None
            }
        }
    }

    fn check_disk(&self, volume_id: &str) -> haar_ec2::DiskCheck {
        match self.0.is_damaged(volume_id) {
            Ok(Some(false)) => haar_ec2::DiskCheck::Sound,
            Ok(Some(true)) => haar_ec2::DiskCheck::Damaged,
            Ok(None) => haar_ec2::DiskCheck::Unknown,
            Err(error) => {
                tracing::warn!(volume = volume_id, %error, "cannot look at the disk");
                haar_ec2::DiskCheck::Unknown
            }
        }
    }

    fn screen(
        self: Arc<Self>,
        instance_id: String,
        wake_up: bool,
    ) -> Pin<Box<dyn Future<Output = haar_ec2::Screen> + Send>> {
        Box::pin(async move { screen_of(self.0.screen(&instance_id, wake_up).await, &instance_id) })
    }
}

fn screen_of(
    picture: std::result::Result<Option<Vec<u8>>, haar_node::Error>,
    instance: &str,
) -> haar_ec2::Screen {
    match picture {
        Ok(Some(picture)) => haar_ec2::Screen::Jpeg(picture),
        Ok(None) => haar_ec2::Screen::None,
        Err(error) => {
            tracing::warn!(instance, %error, "cannot read the display");
            haar_ec2::Screen::Failed
        }
    }
}

impl haar_ebs::Host for Host {
    fn written<'a>(&'a self, snapshot: &'a EbsSnapshot) -> HostFuture<'a, Vec<Part>> {
        Box::pin(async move { self.0.written_parts(snapshot).await.map(parts).map_err(failure) })
    }

    fn changed<'a>(&'a self, first: &'a EbsSnapshot, second: &'a EbsSnapshot) -> HostFuture<'a, Vec<Part>> {
        Box::pin(async move {
            let changed = self.0.changed_parts(first, second).await.map_err(failure)?;
            changed.map(parts).ok_or(haar_ebs::Failure::Unrelated)
        })
    }

    fn uploaded<'a>(&'a self, snapshot: &'a EbsSnapshot) -> HostFuture<'a, Vec<Part>> {
        Box::pin(async move { self.0.uploaded_parts(snapshot).await.map(parts).map_err(failure) })
    }

    fn read<'a>(&'a self, snapshot: &'a EbsSnapshot, part: Part) -> HostFuture<'a, Vec<u8>> {
        Box::pin(async move {
            let length = usize::try_from(part.end - part.start).unwrap_or_default();
            self.0.read_snapshot(snapshot, part.start, length).await.map_err(failure)
        })
    }

    fn write<'a>(&'a self, snapshot: &'a EbsSnapshot, start: u64, data: &'a [u8]) -> HostFuture<'a, ()> {
        Box::pin(async move { self.0.write_snapshot(snapshot, start, data).await.map_err(failure) })
    }

    fn finish<'a>(&'a self, snapshot: &'a EbsSnapshot) -> HostFuture<'a, ()> {
        Box::pin(async move { self.0.finish_upload(snapshot).await.map_err(failure) })
    }
}

fn parts(parts: Vec<(u64, u64)>) -> Vec<Part> {
    parts.into_iter().map(|(start, end)| Part { start, end }).collect()
}

fn failure(error: haar_node::Error) -> haar_ebs::Failure {
    use std::io::ErrorKind::StorageFull;
    match error {
        haar_node::Error::Volume(haar_volume::Error::NoSpace(_)) => haar_ebs::Failure::Full,
        haar_node::Error::Volume(haar_volume::Error::Io { source, .. }) if source.kind() == StorageFull => {
            haar_ebs::Failure::Full
        }
        error => haar_ebs::Failure::Other(error.to_string()),
    }
}

/// What the command line asks of the daemon besides the AWS APIs.
fn admin(admin: Admin) -> RouteHandler {
    let admin = Arc::new(admin);
    Arc::new(move |request| {
        let admin = admin.clone();
        Box::pin(async move { admin.answer(&request).await })
    })
}

/// What EC2 gives guests of other daemons: they become the root's account's.
struct Reception {
    account: String,
    capacity: haar_ec2::Capacity,
    sealer: haar_core::Sealer,
}

impl haar_node::Reception for Reception {
    fn prepare(&self, tx: &mut Tx, region: &str) -> std::result::Result<(), String> {
        if !haar_records::ec2::REGIONS.iter().any(|known| known.name == region) {
            return Err(format!("there is no region {region:?}"));
        }
        let scope = haar_ec2::Scope { account: &self.account, region };
        haar_ec2::defaults::make(tx, scope).map_err(|exists| haar_store::StoreError::from(exists).to_string())
    }

    fn make_room(&self, tx: &mut Tx, instance: &Instance) -> std::result::Result<(), String> {
        let hardware = haar_records::ec2::instance_type(&instance.spec.instance_type)
            .ok_or_else(|| format!("there is no instance type {}", instance.spec.instance_type))?;
        let scope = haar_ec2::Scope { account: &self.account, region: &instance.region };
        let wanted = haar_ec2::capacity::Wanted {
            hardware,
            zone: &instance.spec.availability_zone,
            placement: &instance.spec.placement,
        };
        let room = self.capacity.give(tx, scope, &wanted, 1, 1);
        room.map(drop).map_err(|error| format!("{}: {}", error.code, error.message))
    }

    fn encryption(&self, tx: &mut Tx, region: &str) -> std::result::Result<Encryption, String> {
        let ctx = haar_api::Context::new(&self.account, region);
        let asked = haar_ec2::encryption::Asked { encrypted: Some(true), kms_key_id: None };
        let made = haar_ec2::encryption::of_new(&self.sealer, &ctx, tx, &asked, None);
        let made = made.map_err(|error| format!("{}: {}", error.code, error.message))?;
        made.ok_or_else(|| "there is no key for EBS".to_owned())
    }
}

fn reply(status: StatusCode, body: &serde_json::Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    response
}

/// What a command asks to have moved.
#[derive(Deserialize)]
struct Move {
    instance: String,
    invitation: String,
    #[serde(default)]
    timeout_seconds: Option<u64>,
}

/// Whom another daemon is to find.
#[derive(Deserialize)]
struct Invite {
    address: String,
}

/// Carries out what commands ask of migrations: the path's rest and the body.
async fn migrations(node: &Node, what: &str, body: &[u8]) -> Response<Body> {
    let unreadable = |error: serde_json::Error| {
        let message = format!("the request cannot be read: {error}");
        reply(StatusCode::BAD_REQUEST, &serde_json::json!({"message": message}))
    };
    let done = match what.split_once('/') {
        None if what == "invite" => match serde_json::from_slice::<Invite>(body) {
            Ok(asked) => node.invite(&asked.address).map(|text| serde_json::json!({"invitation": text})),
            Err(error) => return unreadable(error),
        },
        None if what == "begin" => match serde_json::from_slice::<Move>(body) {
            Ok(asked) => {
                let timeout = asked.timeout_seconds.map(Duration::from_secs);
                let begun = node.migrate(&asked.instance, &asked.invitation, timeout).await;
                begun.map(|id| serde_json::json!({"id": id}))
            }
            Err(error) => return unreadable(error),
        },
        None if what == "list" => node.migration_status(None).map(|found| serde_json::json!(found)),
        Some(("status", id)) => node.migration_status(Some(id)).map(|found| serde_json::json!(found)),
        Some(("cancel", id)) => node.cancel_migration(id).map(|()| serde_json::json!({})),
        Some(("take-back", id)) => {
            node.take_back(id).await.map(|unasked| serde_json::json!({"unasked": unasked}))
        }
        _ => return reply(StatusCode::NOT_FOUND, &serde_json::json!({"message": "there is nothing here"})),
    };
    match done {
        Ok(body) => reply(StatusCode::OK, &body),
        Err(error) => reply(StatusCode::CONFLICT, &serde_json::json!({"message": error.to_string()})),
    }
}

struct Admin {
    node: Node,
    uploads: Uploads,
    state: StateDir,
    keyring: Keyring,
    token: String,
}

impl Admin {
    async fn answer(&self, request: &Request<Bytes>) -> Response<Body> {
        let reply = |status, body: serde_json::Value| reply(status, &body);
        let message = |status, message: &str| reply(status, serde_json::json!({"message": message}));
        let given = request.headers().get(ADMIN_HEADER);
        let trusted = given.is_some_and(|given| given.as_bytes().ct_eq(self.token.as_bytes()).into());
        let done = match (request.method(), request.uri().path()) {
            (&Method::GET, "/_haar/health") => {
                return reply(StatusCode::OK, serde_json::json!({"version": env!("CARGO_PKG_VERSION")}));
            }
            _ if !trusted => return message(StatusCode::FORBIDDEN, "the token is missing or wrong"),
            (&Method::GET, "/_haar/images") => {
                let images = self.node.images_of_accounts();
                return reply(StatusCode::OK, images.iter().map(image).collect());
            }
            (&Method::GET, path) if path.starts_with("/_haar/default-user/") => {
                return match self.node.default_user(&path["/_haar/default-user/".len()..]) {
                    Some(user) => reply(StatusCode::OK, serde_json::json!({"default_user": user})),
                    None => message(StatusCode::NOT_FOUND, "nothing is known of it"),
                };
            }
            (&Method::POST, path) if path.starts_with(MIGRATIONS) => {
                return migrations(&self.node, &path[MIGRATIONS.len()..], request.body()).await;
            }
            (&Method::POST, path) if path.starts_with(uploads::PATH) => {
                let (uploads, what) = (self.uploads.clone(), path[uploads::PATH.len()..].to_owned());
                let body = request.body().clone();
                let done = tokio::task::spawn_blocking(move || uploads.answer(&what, &body)).await;
                return match done.unwrap_or_else(|error| Err(error.to_string())) {
                    Ok(answer) => reply(StatusCode::OK, answer),
                    Err(why) => message(StatusCode::CONFLICT, &why),
                };
            }
            (&Method::POST, "/_haar/images/rescan") => {
                self.node.rescan_images().await.map_err(|error| error.to_string())
            }
            (&Method::POST, "/_haar/guests/stop") => {
                let grace = std::str::from_utf8(request.body()).ok().and_then(|text| text.parse().ok());
                grace
                    .map(|grace| self.node.go_down(Duration::from_secs(grace)))
                    .ok_or_else(|| "how long?".to_owned())
            }
            (&Method::POST, "/_haar/guests/start") => {
                self.node.stay_up();
                Ok(())
            }
            (&Method::POST, "/_haar/guests") => match self.node.machines() {
                Ok(machines) => return reply(StatusCode::OK, serde_json::json!({"machines": machines})),
                Err(error) => Err(error.to_string()),
            },
            (&Method::POST, "/_haar/accounts/rescan") => {
                import_accounts(&self.state, &self.keyring).await.map_err(|error| error.to_string())
            }
            _ => return message(StatusCode::NOT_FOUND, "there is nothing here"),
        };
        match done {
            Ok(()) => reply(StatusCode::OK, serde_json::json!({})),
            Err(error) => message(StatusCode::INTERNAL_SERVER_ERROR, &error),
        }
    }
}

/// An account's image, as the command line needs it ([`crate::client::AccountImage`]).
fn image(image: &haar_records::ec2::Image) -> serde_json::Value {
    let root = image.devices.iter().find(|device| device.device_name == image.root_device_name);
    serde_json::json!({
        "image_id": image.id,
        "name": image.name,
        "description": image.description.clone().unwrap_or_default(),
        "account": image.account,
        "region": image.region,
        "state": image.state,
        "creation_date": image.creation_date.format(&Rfc3339).unwrap_or_default(),
        "default_user": image.default_user,
        "library_id": image.library_id,
        "root_snapshot": root.and_then(|root| root.snapshot_id.as_ref()),
        "encrypted": root.is_some_and(|root| root.encrypted),
        "size_gib": image.root_size_gib,
    })
}

/// Completes when the process is asked to stop.
fn stop_signal() -> Result<impl Future<Output = ()>> {
    let on = |kind| signal(kind).map_err(Error::io("listen for", "signals"));
    let (mut terminate, mut interrupt) = (on(SignalKind::terminate())?, on(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Stops everything that the daemon of this configuration runs on the machine. The caller holds the state folder's claim.
pub fn teardown(config: &Config) -> Result<()> {
    let state = StateDir::new(&config.state_dir);
    let keys = Credentials::load_or_create(&state)?;
    let node = haar_node::Config {
        state_dir: config.state_dir.clone(),
        name: config.name.to_string(),
        public_pool: config.public_pool,
        account: keys.account_id,
        identity: identity(&state)?,
        compute: Compute::Simulated,
        sealer: ebs_sealer(&state)?,
        import_folders: Vec::new(),
    };
    runtime()?.block_on(haar_node::teardown(&node)).map_err(Error::daemon)
}
