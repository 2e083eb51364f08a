//! The network reconciler: from the records of a VPC to its namespace, links, rules and servers.

use std::collections::{BTreeSet, HashMap};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use haar_core::reconcile::{Action, Failure, Reconciler};
use haar_guest::{CancellationToken, DnsServer, Forwarder, TokenKey, Zone};
use haar_net::{GroupSpec, InterfaceSpec, Peer, Ports, Protocol, Rule, Transit, VpcSpec};
use haar_records::ec2::{
    Instance, InstanceState, InternetGateway, Migration, MigrationPhase, NetworkInterface, RouteTarget,
    RuleTarget, SecurityGroup, Subnet, Vpc, instance_type,
};
use haar_store::{Entry, Key, Resource, Snapshot, Store};
use ipnet::Ipv4Net;

use crate::directory::{self, Guests};
use crate::{Config, Error, ForGuests};

/// Where the metadata service answers.
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// Where the resolver answers in every VPC.
const RESOLVER: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 253);

/// The networks of this host's VPCs.
pub(crate) struct Network {
    store: Store,
    driver: haar_net::Driver,
    forwarder: Arc<Forwarder>,
    token_key: TokenKey,
    for_guests: ForGuests,
    vpcs: Mutex<HashMap<String, Arc<VpcNetwork>>>,
}

/// One VPC's network; the lock is held while it is worked on.
struct VpcNetwork {
    guests: Arc<Guests>,
    servers: tokio::sync::Mutex<Option<CancellationToken>>,
}

impl Drop for VpcNetwork {
    fn drop(&mut self) {
        if let Some(servers) = self.servers.get_mut().take() {
            servers.cancel();
        }
    }
}

impl Network {
    pub(crate) async fn new(config: &Config, for_guests: ForGuests, store: Store) -> Result<Self, Error> {
        Ok(Self {
            driver: haar_net::Driver::new(config.driver())?,
            forwarder: Arc::new(Forwarder::from_resolv_conf("/etc/resolv.conf")),
            token_key: TokenKey::new(haar_core::Secret::load(&store, "imds-token").await?),
            for_guests,
            vpcs: Mutex::default(),
            store,
        })
    }

    /// The host's address on every uplink.
    pub(crate) fn host_address(&self) -> Ipv4Addr {
        self.driver.host_address()
    }

    pub(crate) fn namespace(&self, vpc_id: &str) -> PathBuf {
        self.driver.namespace(vpc_id)
    }

    fn vpc(&self, vpc_id: &str) -> Arc<VpcNetwork> {
        let mut vpcs = self.vpcs.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || {
            Arc::new(VpcNetwork {
                guests: Arc::new(Guests::new(self.store.clone(), self.for_guests.profiles.clone())),
                servers: tokio::sync::Mutex::new(None),
            })
        };
        vpcs.entry(vpc_id.to_owned()).or_insert_with(make).clone()
    }

    /// Makes a VPC's network match the records; removes it when nothing in it needs a link.
    pub(crate) async fn sync(&self, account: &str, region: &str, vpc_id: &str) -> Result<(), Error> {
        let network = self.vpc(vpc_id);
        let mut servers = network.servers.lock().await;
        // Read under the lock, so that an older view never overwrites a newer one.
        let snapshot = self.store.snapshot();
        let plan = match snapshot.get::<Vpc>(account, region, vpc_id) {
            Some(vpc) => Some(plan(&snapshot, &vpc)?).filter(|plan| !plan.spec.interfaces.is_empty()),
            None => None,
        };
        let Some(Plan { spec, instances }) = plan else {
            if let Some(servers) = servers.take() {
                servers.cancel();
            }
            network.guests.replace(Vec::new(), &HashMap::new());
            return Ok(self.driver.remove(vpc_id).await?);
        };
        let cidr = spec.cidr;
        let ids = spec.interfaces.iter().map(|interface| interface.id.clone()).collect();
        self.driver.sync(spec).await?;
        let indexes = self.driver.interface_indexes(vpc_id, ids).await?;
        network.guests.replace(instances, &indexes);
        if servers.is_none() {
            *servers = Some(self.serve(vpc_id, region, cidr, network.guests.clone()).await?);
        }
        Ok(())
    }

    /// As [`Network::sync`], where another daemon of this host may have had a public address meanwhile.
    pub(crate) async fn take_over_again(
        &self,
        account: &str,
        region: &str,
        vpc_id: &str,
    ) -> Result<(), Error> {
        self.driver.look_for_routes(vpc_id).await?;
        self.sync(account, region, vpc_id).await
    }

    /// Starts the servers of a VPC's link.
    async fn serve(
        &self,
        vpc_id: &str,
        region: &str,
        vpc_cidr: Ipv4Net,
        guests: Arc<Guests>,
    ) -> Result<CancellationToken, Error> {
        let driver = &self.driver;
        let dhcp = driver.bind_udp(vpc_id, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 67)).await?;
        let imds = driver.bind_tcp(vpc_id, SocketAddrV4::new(METADATA, 80)).await?;
        let api = driver.bind_tcp(vpc_id, SocketAddrV4::new(METADATA, haar_guest::API_PORT)).await?;
        let (mut udp, mut tcp) = (Vec::new(), Vec::new());
        for address in [Ipv4Addr::from(u32::from(vpc_cidr.network()) + 2), RESOLVER] {
            udp.push(driver.bind_udp(vpc_id, SocketAddrV4::new(address, 53)).await?);
            tcp.push(driver.bind_tcp(vpc_id, SocketAddrV4::new(address, 53)).await?);
        }
        let stop = CancellationToken::new();
        let zone = Zone { region: region.to_owned(), vpc_cidr };
        let dns = DnsServer { udp, tcp, zone, forwarder: self.forwarder.clone() };
        spawn(vpc_id, "DHCP", haar_guest::serve_dhcp(dhcp, guests.clone(), stop.clone()));
        spawn(vpc_id, "DNS", haar_guest::serve_dns(dns, guests.clone(), stop.clone()));
        spawn(vpc_id, "metadata", haar_guest::serve_imds(imds, guests, self.token_key.clone(), stop.clone()));
        if let Some(callers) = self.for_guests.api.clone() {
            spawn(vpc_id, "API", haar_guest::serve_api(api, callers, stop.clone()));
        }
        Ok(stop)
    }

    /// The connections of interfaces with what lies beyond the internet gateway, as [`Network::track`] takes them. Without them a guest
    /// that moves keeps those that its groups would let begin.
    pub(crate) async fn connections(&self, interfaces: &[NetworkInterface]) -> String {
        let mut all = Vec::new();
        for interface in interfaces.iter().filter(|interface| interface.public_address.is_some()) {
            match self.driver.connections(&interface.vpc_id, interface.private_ip).await {
                Ok(found) => all.extend(found),
                Err(error) => {
                    tracing::warn!(interface = interface.id, %error, "its connections are not known");
                }
            }
        }
        serde_json::to_string(&all).unwrap_or_default()
    }

    /// Has a VPC's network know connections of a guest that comes here.
    pub(crate) async fn track(&self, vpc_id: &str, connections: &str) {
        let connections = serde_json::from_str::<Vec<haar_net::Connection>>(connections).unwrap_or_default();
        if let Err(error) = self.driver.track(vpc_id, connections).await {
            tracing::warn!(vpc = vpc_id, %error, "connections of a guest that comes here are not known");
        }
    }

    /// Whether the guest behind an interface answers an ARP request.
    pub(crate) async fn reachable(&self, instance: &Instance) -> Result<bool, Error> {
        let snapshot = self.store.snapshot();
        let Some(id) = instance.spec.network_interfaces.first() else { return Ok(false) };
        let Some(eni) = snapshot.get::<NetworkInterface>(&instance.account, &instance.region, id) else {
            return Ok(false);
        };
        Ok(self.driver.answers_arp(&eni.vpc_id, &eni.id, eni.private_ip).await?)
    }

    /// Removes the networks of VPCs that have no record.
    pub(crate) async fn collect_garbage(&self) -> Result<(), Error> {
        let present = self.driver.list().await?;
        let known: BTreeSet<String> =
            self.store.snapshot().list_all::<Vpc>().map(|vpc| vpc.id.clone()).collect();
        for vpc_id in present.iter().filter(|id| !known.contains(*id)) {
            tracing::info!(vpc = vpc_id, "removing the network of a VPC without a record");
            if let Err(error) = self.driver.remove(vpc_id).await {
                tracing::warn!(vpc = vpc_id, %error, "cannot remove the network");
            }
        }
        Ok(())
    }
}

fn spawn(
    vpc_id: &str,
    server: &'static str,
    serve: impl Future<Output = Result<(), haar_guest::ServeError>> + Send + 'static,
) {
    let vpc_id = vpc_id.to_owned();
    tokio::spawn(async move {
        if let Err(error) = serve.await {
            tracing::error!(vpc = vpc_id, server, %error, "a server of the link could not begin");
        }
    });
}

/// What a VPC's network is to be.
struct Plan {
    spec: VpcSpec,
    instances: Vec<Arc<haar_guest::Instance>>,
}

fn plan(snapshot: &Snapshot, vpc: &Vpc) -> Result<Plan, Error> {
    let (account, region) = (&vpc.account, &vpc.region);
    let cidr = block(&vpc.id, &vpc.cidr_block)?;
    let mut spec = VpcSpec {
        id: vpc.id.clone(),
        cidr,
        subnets: Vec::new(),
        internet_gateway: has_route_to_gateway(snapshot, vpc),
        interfaces: Vec::new(),
        groups: Vec::new(),
    };
    for subnet in snapshot.by_index::<Subnet>(account, region, "vpc", &vpc.id) {
        spec.subnets.push(block(&subnet.id, &subnet.cidr_block)?);
    }
    let mut instances = Vec::new();
    for record in snapshot.by_index::<Instance>(account, region, "vpc", &vpc.id) {
        // A link exists while the machine may.
        if matches!(record.status.state, InstanceState::Stopped | InstanceState::Terminated) {
            continue;
        }
        for id in &record.spec.network_interfaces {
            if let Some(eni) = snapshot.get::<NetworkInterface>(account, region, id) {
                spec.interfaces.push(interface(&record.value, &eni)?);
            }
        }
        instances.push(Arc::new(directory::instance(snapshot, record, cidr)?));
    }
    // So do those of guests that are on their way.
    for migration in snapshot.by_index::<Migration>(account, region, "vpc", &vpc.id) {
        let transit = match migration.phase {
            MigrationPhase::Receiving => Transit::Arriving,
            MigrationPhase::HandingOver => Transit::Leaving,
            _ => continue,
        };
        for eni in &migration.bundle.interfaces {
            let link = interface(&migration.bundle.instance, eni)?;
            spec.interfaces.push(InterfaceSpec { transit, ..link });
        }
        // Groups that come with the guest have no record yet.
        for group in &migration.bundle.groups {
            if snapshot.get::<SecurityGroup>(account, region, &group.id).is_none() {
                spec.groups.push(group_spec(group)?);
            }
        }
    }
    for group in snapshot.by_index::<SecurityGroup>(account, region, "vpc", &vpc.id) {
        spec.groups.push(group_spec(group)?);
    }
    Ok(Plan { spec, instances })
}

/// Whether an internet gateway is attached and the VPC's routes lead to it.
fn has_route_to_gateway(snapshot: &Snapshot, vpc: &Vpc) -> bool {
    let mut gateways = snapshot.by_index::<InternetGateway>(&vpc.account, &vpc.region, "vpc", &vpc.id);
    let mut tables =
        snapshot.by_index::<haar_records::ec2::RouteTable>(&vpc.account, &vpc.region, "vpc", &vpc.id);
    gateways.next().is_some_and(|gateway| {
        let leads_there = RouteTarget::InternetGateway(gateway.id.clone());
        tables.any(|table| table.routes.iter().any(|route| route.target == leads_there))
    })
}

fn block(id: &str, cidr: &str) -> Result<Ipv4Net, Error> {
    cidr.parse().map_err(|_| Error::Inconsistent(format!("{id}: the CIDR block '{cidr}' cannot be read")))
}

fn interface(instance: &Instance, eni: &NetworkInterface) -> Result<InterfaceSpec, Error> {
    Ok(InterfaceSpec {
        id: eni.id.clone(),
        mac: mac(eni)?,
        private_ip: eni.private_ip,
        public_ip: eni.public_address.as_ref().map(|address| address.ip),
        foreign_host: eni.public_address.as_ref().and_then(|address| address.foreign_host),
        transit: Transit::None,
        groups: eni.groups.clone(),
        source_dest_check: eni.source_dest_check,
        bandwidth_mbps: instance_type(&instance.spec.instance_type).map(|t| t.network_peak_mbps),
    })
}

/// An interface's MAC address as bytes.
pub(crate) fn mac(eni: &NetworkInterface) -> Result<[u8; 6], Error> {
    let bytes: Result<Vec<u8>, _> =
        eni.mac_address.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
    bytes.ok().and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| {
        Error::Inconsistent(format!("{}: the MAC address '{}' cannot be read", eni.id, eni.mac_address))
    })
}

fn group_spec(group: &SecurityGroup) -> Result<GroupSpec, Error> {
    let rules = |egress: bool| {
        let of_direction = group.rules.iter().filter(move |rule| rule.egress == egress);
        of_direction.map(|rule| {
            let peer = match &rule.target {
                RuleTarget::Cidr(cidr) => Peer::Cidr(block(&rule.id, cidr)?),
                RuleTarget::Group(id) => Peer::Group(id.clone()),
            };
            Ok(Rule { protocol: protocol(&rule.protocol, rule.from_port, rule.to_port)?, peer })
        })
    };
    Ok(GroupSpec {
        id: group.id.clone(),
        ingress: rules(false).collect::<Result<_, Error>>()?,
        egress: rules(true).collect::<Result<_, Error>>()?,
    })
}

/// Reads a rule's protocol and what its ports mean for it (`IpPermission` in the API reference).
fn protocol(name: &str, from: i32, to: i32) -> Result<Protocol, Error> {
    let ports = || match (u16::try_from(from), u16::try_from(to)) {
        (Ok(first), Ok(last)) => Ports { first, last },
        _ => Ports::ALL,
    };
    Ok(match name {
        "-1" => Protocol::All,
        "tcp" => Protocol::Tcp(ports()),
        "udp" => Protocol::Udp(ports()),
        "icmp" => Protocol::Icmp { kind: u8::try_from(from).ok(), code: u8::try_from(to).ok() },
        number => Protocol::Number(number.parse().map_err(|_| {
            Error::Inconsistent(format!("a security group rule has the protocol '{number}'"))
        })?),
    })
}

/// Reconciles the networks of VPCs.
pub(crate) struct Networks {
    network: Arc<Network>,
}

impl Networks {
    pub(crate) fn new(network: Arc<Network>) -> Self {
        Self { network }
    }
}

impl Reconciler for Networks {
    type Resource = Vpc;
    type Error = Error;

    fn triggers(&self, before: &Vpc, after: &Vpc) -> bool {
        before.cidr_block != after.cidr_block
    }

    async fn reconcile(&self, key: &Key, entry: Option<Entry<Vpc>>) -> Result<Action, Error> {
        debug_assert_eq!(key.kind(), Vpc::KIND);
        self.network.sync(key.account(), key.region(), key.id()).await?;
        if entry.is_none() {
            self.network.vpcs.lock().unwrap_or_else(PoisonError::into_inner).remove(key.id());
        }
        Ok(Action::Done)
    }

    async fn failed(&self, key: &Key, failure: &Failure<Error>, attempt: u32) {
        // A VPC has no status that could say so; an instance that cannot be started for it says so itself.
        tracing::error!(vpc = key.id(), attempt, %failure, "cannot reconcile the network");
    }
}
