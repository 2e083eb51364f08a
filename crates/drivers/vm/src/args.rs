//! QEMU's command line.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::migrate::Place;
use crate::probe::Accel;
use crate::{Boot, Disk, Error, Layout, Nic, Spec, disks};

/// File descriptors that the QEMU process inherits.
pub(crate) struct Inherited {
    /// The listening socket of the monitor.
    pub qmp: RawFd,
    /// The listening socket of the serial console.
    pub console: RawFd,
    /// The taps, in the order of [`Spec::nics`].
    pub taps: Vec<RawFd>,
    /// Pipes with the keys of encrypted disks, by disk.
    pub keys: Vec<(String, RawFd)>,
}

/// The size of TCG's cache of translated code in MiB. QEMU's own default is 1 GiB a machine, which would dwarf
/// small instances; Linux with systemd fills about a hundred.
pub(crate) const TCG_CACHE_MIB: u64 = 256;

/// The command line, without the program's name. With a layout, that of a machine that waits for a guest to arrive.
///
/// Options stay within what QEMU 7.2 (Debian 12) knows.
pub(crate) fn args(
    spec: &Spec,
    accel: Accel,
    fds: &Inherited,
    layout: Option<&Layout>,
) -> Result<Vec<OsString>, Error> {
    let mut args = Args(Vec::new());
    args.add("-name", format!("haar-{},debug-threads=on", spec.id));
    args.flag("-no-user-config");
    args.flag("-nodefaults");
    args.add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    args.add("-msg", "timestamp=on");
    // A guest that powers off or panics leaves QEMU paused, to be read by whoever comes next.
    args.add("-action", "shutdown=pause,panic=pause,reboot=reset");

    let model = layout.map_or("q35", |layout| &layout.machine);
    let mut machine = format!("{model},usb=off,vmport=off,dump-guest-core=off");
    if let Boot::Uefi { code, vars } = &spec.boot {
        args.json("-blockdev", &pflash("uefi-code", code, true)?);
        args.json("-blockdev", &pflash("uefi-vars", vars, false)?);
        machine.push_str(",pflash0=uefi-code,pflash1=uefi-vars");
    }
    args.add("-machine", machine);
    args.add("-accel", accel.option(spec.vcpus));
    args.add("-cpu", accel.cpu(spec.threads_per_core > 1));
    let (vcpus, threads) = (spec.vcpus, spec.threads_per_core);
    let cores = vcpus / threads;
    args.add("-smp", format!("cpus={vcpus},maxcpus={vcpus},sockets=1,cores={cores},threads={threads}"));
    args.add("-m", format!("size={}M", spec.memory_mib));
    args.add("-rtc", "base=utc");
    args.add("-display", "none");
    args.add("-vga", "none");
    if spec.display {
        // Seen by nobody but who asks for a picture. Eight MiB hold any mode that firmware sets.
        args.json("-device", &json!({ "driver": "VGA", "vgamem_mb": 8 }));
    }
    args.add("-boot", "strict=on");
    smbios(&mut args, spec);

    args.add("-chardev", format!("socket,id=qmp,fd={},server=on,wait=off", fds.qmp));
    args.add("-mon", "chardev=qmp,mode=control");
    let log = escaped(utf8(&spec.console_log)?);
    args.add(
        "-chardev",
        format!("socket,id=console,fd={},server=on,wait=off,logfile={log},logappend=on", fds.console),
    );
    args.add("-serial", "chardev:console");

    args.add("-object", "rng-builtin,id=rng");
    args.json("-device", &json!({ "driver": "virtio-rng-pci", "rng": "rng", "bus": "pcie.0" }));
    // By which a guest's kernel tells that it panicked; those of before 5.13 know only the first.
    args.json("-device", &json!({ "driver": "pvpanic" }));
    args.json("-device", &json!({ "driver": "pvpanic-pci", "bus": "pcie.0" }));

    if let Boot::Kernel { kernel, initrd, cmdline } = &spec.boot {
        args.add("-kernel", kernel);
        if let Some(initrd) = initrd {
            args.add("-initrd", initrd);
        }
        args.add("-append", cmdline);
    }

    let devices = spec.disks.len() + spec.nics.len();
    let ports = layout.map_or(devices + usize::from(spec.hotplug), |layout| layout.ports);
    root_ports(&mut args, ports);
    if spec.hotplug {
        // One bridge with many slots: a port for each costs the guest 20 ms at boot.
        let bus = port_id(ports.saturating_sub(1));
        args.json("-device", &json!({ "driver": "pcie-pci-bridge", "id": disks::HOTPLUG_BUS, "bus": bus }));
    }
    for (disk, fd) in &fds.keys {
        args.json("-object", &disks::inherited_key(disk, *fd));
    }
    let mut next_port = 0..;
    let mut place = |id: &str| match layout {
        Some(layout) => layout.place(id).cloned(),
        None => Ok(Place { bus: port_id(next_port.next().unwrap_or_default()), slot: 0 }),
    };
    for disk in &spec.disks {
        attach_disk(&mut args, disk, &place(&disk.id)?)?;
    }
    for (nic, fd) in spec.nics.iter().zip(&fds.taps) {
        attach_nic(&mut args, nic, *fd, &place(&nic.id)?);
    }
    if layout.is_some() {
        // It does not run by itself, whatever arrives.
        args.add("-incoming", "defer");
        args.flag("-S");
    }
    Ok(args.0)
}

struct Args(Vec<OsString>);

impl Args {
    fn flag(&mut self, name: &str) {
        self.0.push(name.into());
    }

    fn add(&mut self, name: &str, value: impl Into<OsString>) {
        self.flag(name);
        self.0.push(value.into());
    }

    fn json(&mut self, name: &str, value: &Value) {
        self.add(name, value.to_string());
    }
}

/// What the guest reads as its hardware: cloud-init's `ds-identify` and the AWS agents know EC2 by it
/// (EC2 User Guide, "Detect whether a host is an EC2 instance").
fn smbios(args: &mut Args, spec: &Spec) {
    let uuid = system_uuid(&spec.id);
    let product = escaped(&spec.instance_type);
    args.add("-smbios", "type=0,vendor=Amazon EC2,version=1.0");
    args.add(
        "-smbios",
        format!("type=1,manufacturer=Amazon EC2,product={product},version=1.0,serial={uuid},uuid={uuid}"),
    );
    args.add("-smbios", format!("type=2,manufacturer=Amazon EC2,asset={}", spec.id));
    args.add("-smbios", "type=3,manufacturer=Amazon EC2,asset=Amazon EC2");
}

/// The UUID of an instance's system: `ec2`, then a hash of its id, in the form of RFC 9562's version 8.
pub(crate) fn system_uuid(id: &str) -> String {
    let digest = Sha256::digest(id.as_bytes());
    let mut bytes = [0u8; 16];
    bytes.copy_from_slice(&digest[..16]);
    bytes[0] = 0xec;
    bytes[1] = 0x20 | bytes[1] & 0x0f;
    bytes[6] = 0x80 | bytes[6] & 0x0f;
    bytes[8] = 0x80 | bytes[8] & 0x3f;
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Root ports, eight to a slot of the root bus, each with room for one device.
fn root_ports(args: &mut Args, count: usize) {
    for port in 0..count {
        // Slots 0x1f (chipset) and those given to devices above are taken; ports begin at 0x10.
        args.json(
            "-device",
            &json!({
                "driver": "pcie-root-port",
                "id": port_id(port),
                "bus": "pcie.0",
                "chassis": port + 1,
                "addr": format!("{:x}.{:x}", 0x10 + port / 8, port % 8),
                "multifunction": port % 8 == 0,
            }),
        );
    }
}

fn port_id(port: usize) -> String {
    format!("port{port}")
}

fn attach_disk(args: &mut Args, disk: &Disk, place: &Place) -> Result<(), Error> {
    args.json("-object", &disks::throttle_group(disk));
    args.json("-blockdev", &disks::node(disk)?);
    let mut device = disks::device(disk, &place.bus);
    match place.port() {
        // QEMU gives 0 to a kernel that it loads.
        Some(port) => device["bootindex"] = (port + 1).into(),
        // Where it was attached while the machine ran.
        None => device["addr"] = format!("{:x}.0", place.slot).into(),
    }
    args.json("-device", &device);
    Ok(())
}

fn attach_nic(args: &mut Args, nic: &Nic, fd: RawFd, place: &Place) {
    args.add("-netdev", format!("tap,id={},fd={fd}", nic.id));
    let mac: Vec<String> = nic.mac.iter().map(|b| format!("{b:02x}")).collect();
    args.json(
        "-device",
        &json!({
            "driver": "virtio-net-pci",
            "id": format!("d-{}", nic.id),
            "netdev": nic.id,
            "bus": place.bus,
            "mac": mac.join(":"),
            "host_mtu": nic.mtu,
            // No network boot: EC2 has none, and the option ROM costs time.
            "romfile": "",
        }),
    );
}

fn pflash(node: &str, path: &Path, read_only: bool) -> Result<Value, Error> {
    Ok(json!({
        "driver": "raw",
        "node-name": node,
        "read-only": read_only,
        "file": { "driver": "file", "filename": utf8(path)?, "read-only": read_only },
    }))
}

/// QEMU's `key=value` options take a comma doubled.
fn escaped(value: &str) -> String {
    value.replace(',', ",,")
}

/// QEMU's JSON options take only text.
pub(crate) fn utf8(path: &Path) -> Result<&str, Error> {
    path.to_str().ok_or_else(|| Error::InvalidSpec {
        id: String::new(),
        reason: format!("the path {} is not UTF-8", path.display()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DiskFormat, DiskLimits};

    fn spec() -> Spec {
        Spec {
            id: "i-0123456789abcdef0".into(),
            instance_type: "t3.micro".into(),
            vcpus: 2,
            threads_per_core: 1,
            memory_mib: 1024,
            boot: Boot::Firmware,
            disks: vec![Disk {
                id: "vol-0123456789abcdef0".into(),
                path: "/volumes/a,b.qcow2".into(),
                format: DiskFormat::Qcow2,
                read_only: false,
                limits: DiskLimits { iops: 3000, bytes_per_second: 125 << 20, ..DiskLimits::default() },
                key: None,
                below: Vec::new(),
            }],
            nics: vec![Nic {
                id: "eni-1".into(),
                ifname: "tap".into(),
                mac: [2, 0, 0, 0xab, 0, 1],
                mtu: 9001,
            }],
            netns: None,
            console_log: "/log,s/console".into(),
            hotplug: true,
            display: true,
        }
    }

    fn line(spec: &Spec, accel: Accel) -> Vec<String> {
        let keys = spec.disks.iter().filter(|disk| disk.key.is_some());
        let keys = keys.map(|disk| (disk.id.clone(), 13)).collect();
        let fds = Inherited { qmp: 10, console: 11, taps: vec![12], keys };
        args(spec, accel, &fds, None)
            .unwrap()
            .into_iter()
            .map(|argument| argument.into_string().unwrap())
            .collect()
    }

    /// The values of an option.
    fn values(line: &[String], option: &str) -> Vec<String> {
        line.windows(2).filter(|pair| pair[0] == option).map(|pair| pair[1].clone()).collect()
    }

    /// The JSON values of an option that have a property of this value.
    fn objects(line: &[String], option: &str, key: &str, value: &str) -> Vec<Value> {
        let all =
            values(line, option).into_iter().filter_map(|text| serde_json::from_str::<Value>(&text).ok());
        all.filter(|object| object[key] == value).collect()
    }

    #[test]
    fn commas_stay_in_their_values() {
        let mut spec = spec();
        spec.instance_type = "t3,type=0".into();
        let line = line(&spec, Accel::Tcg);
        assert!(values(&line, "-smbios").iter().any(|text| text.contains("product=t3,,type=0,")));
        assert!(values(&line, "-chardev").iter().any(|text| text.contains("logfile=/log,,s/console,")));
        let disk = &objects(&line, "-blockdev", "node-name", "vol-0123456789abcdef0")[0];
        assert_eq!(disk["file"]["file"]["filename"], "/volumes/a,b.qcow2");
    }

    #[test]
    fn disks_carry_their_id_and_limits() {
        let line = line(&spec(), Accel::Tcg);
        let device = &objects(&line, "-device", "driver", "virtio-blk-pci")[0];
        assert_eq!(device["serial"], "vol0123456789abcdef0");
        let node = &objects(&line, "-blockdev", "driver", "throttle")[0];
        assert_eq!(device["drive"], node["node-name"]);
        let group = &objects(&line, "-object", "qom-type", "throttle-group")[0];
        assert_eq!(group["id"], node["throttle-group"]);
        assert_eq!(group["limits"]["iops-total"], 3000);
        assert_eq!(group["limits"]["bps-total"], 131_072_000);

        let mut free = spec();
        free.disks[0].read_only = true;
        let line = self::line(&free, Accel::Tcg);
        let disk = &objects(&line, "-blockdev", "driver", "throttle")[0];
        let node = &disk["file"];
        assert_eq!((&node["read-only"], &node["file"]["read-only"]), (&json!(true), &json!(true)));
    }

    #[test]
    fn keys_are_on_no_command_line() {
        let mut spec = spec();
        spec.disks[0].key = Some(crate::DiskKey::new("open sesame"));
        let below = |path: &str, encrypted| crate::DiskLayer {
            path: path.into(),
            format: DiskFormat::Qcow2,
            encrypted,
        };
        spec.disks[0].below = vec![below("/volumes/snap-1.qcow2", true), below("/images/root.qcow2", false)];
        let line = line(&spec, Accel::Tcg);
        assert!(!line.join(" ").contains("sesame") && !format!("{spec:?}").contains("sesame"));
        assert!(!serde_json::to_string(&spec).unwrap().contains("sesame"));
        let secret = &objects(&line, "-object", "qom-type", "secret")[0];
        assert_eq!((&secret["file"], secret.get("data")), (&json!("/proc/self/fd/13"), None));
        let layer = &objects(&line, "-blockdev", "driver", "throttle")[0]["file"];
        assert_eq!(layer["encrypt"]["key-secret"], secret["id"]);
        let below = &layer["backing"];
        assert_eq!(below["file"]["filename"], "/volumes/snap-1.qcow2");
        assert_eq!(below["encrypt"], layer["encrypt"]);
        assert_eq!(below["backing"]["file"]["filename"], "/images/root.qcow2");
        assert_eq!(below["backing"].get("encrypt"), None);
    }

    #[test]
    fn every_device_has_a_port_and_a_bridge_has_room_for_more() {
        let line = line(&spec(), Accel::Tcg);
        let ports: Vec<Value> = objects(&line, "-device", "driver", "pcie-root-port");
        assert_eq!(ports.len(), 3);
        let used = [("virtio-blk-pci", 0), ("virtio-net-pci", 1), ("pcie-pci-bridge", 2)];
        for (driver, port) in used {
            assert_eq!(objects(&line, "-device", "driver", driver)[0]["bus"], ports[port]["id"]);
        }
        let mut many = spec();
        let disk = many.disks[0].clone();
        many.disks = (0..32).map(|index| Disk { id: format!("vol-{index}"), ..disk.clone() }).collect();
        let line = self::line(&many, Accel::Tcg);
        let mut addresses: Vec<String> = objects(&line, "-device", "driver", "pcie-root-port")
            .iter()
            .map(|port| port["addr"].to_string())
            .collect();
        addresses.dedup();
        assert_eq!(addresses.len(), 34);
    }

    #[test]
    fn a_guest_that_arrives_finds_its_devices_where_they_were() {
        let mut spec = spec();
        let late = Disk { id: "vol-2".into(), ..spec.disks[0].clone() };
        spec.disks.push(late);
        let place = |bus: &str, slot| Place { bus: bus.into(), slot };
        let layout = Layout {
            machine: "pc-q35-7.2".into(),
            ports: 4,
            display: true,
            hotplug: true,
            places: [
                ("vol-0123456789abcdef0".to_owned(), place("port0", 0)),
                ("vol-2".to_owned(), place("hotplug", 3)),
                ("eni-1".to_owned(), place("port2", 0)),
            ]
            .into(),
        };
        let fds = Inherited { qmp: 10, console: 11, taps: vec![12], keys: Vec::new() };
        let line = args(&spec, Accel::Tcg, &fds, Some(&layout)).unwrap();
        let line: Vec<String> = line.into_iter().map(|argument| argument.into_string().unwrap()).collect();
        assert_eq!(values(&line, "-incoming"), ["defer"]);
        assert!(line.contains(&"-S".to_owned()) && values(&line, "-machine")[0].starts_with("pc-q35-7.2,"));
        assert_eq!(objects(&line, "-device", "driver", "pcie-root-port").len(), 4);
        assert_eq!(objects(&line, "-device", "driver", "pcie-pci-bridge")[0]["bus"], "port3");
        let disks = objects(&line, "-device", "driver", "virtio-blk-pci");
        assert_eq!((&disks[0]["bus"], &disks[0]["bootindex"]), (&json!("port0"), &json!(1)));
        assert_eq!((&disks[1]["bus"], &disks[1]["addr"]), (&json!("hotplug"), &json!("3.0")));
        assert_eq!(objects(&line, "-device", "driver", "virtio-net-pci")[0]["bus"], "port2");
        // What has no place is not guessed.
        let mut less = layout.clone();
        less.places.remove("vol-2");
        assert!(matches!(args(&spec, Accel::Tcg, &fds, Some(&less)), Err(Error::InvalidSpec { .. })));
    }

    #[test]
    fn interfaces_are_the_open_taps() {
        let line = line(&spec(), Accel::Tcg);
        assert_eq!(values(&line, "-netdev"), ["tap,id=eni-1,fd=12"]);
        let device = &objects(&line, "-device", "driver", "virtio-net-pci")[0];
        assert_eq!((&device["mac"], &device["host_mtu"]), (&json!("02:00:00:ab:00:01"), &json!(9001)));
    }

    #[test]
    fn accelerators_differ() {
        let kvm = line(&spec(), Accel::Kvm);
        assert_eq!((values(&kvm, "-accel"), values(&kvm, "-cpu")), (vec!["kvm".into()], vec!["host".into()]));
        let tcg = line(&spec(), Accel::Tcg);
        assert_eq!(values(&tcg, "-accel"), ["tcg,thread=single,tb-size=256"]);
        let one = line(&Spec { vcpus: 1, threads_per_core: 1, ..spec() }, Accel::Tcg);
        assert_eq!(values(&one, "-accel"), ["tcg,thread=multi,tb-size=256"]);
    }

    #[test]
    fn the_system_is_known_as_ec2() {
        let uuid = system_uuid("i-0123456789abcdef0");
        assert_eq!(uuid, system_uuid("i-0123456789abcdef0"));
        assert_ne!(uuid, system_uuid("i-0123456789abcdef1"));
        assert!(uuid.starts_with("ec2"));
        let lengths: Vec<usize> = uuid.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12]);
        assert_eq!(&uuid[14..15], "8");
        assert!(matches!(&uuid[19..20], "8" | "9" | "a" | "b"));
        let smbios = values(&line(&spec(), Accel::Tcg), "-smbios");
        assert!(smbios.iter().any(|text| text.contains(&format!("serial={uuid},uuid={uuid}"))));
        assert!(smbios.iter().any(|text| text == "type=3,manufacturer=Amazon EC2,asset=Amazon EC2"));
    }
}
