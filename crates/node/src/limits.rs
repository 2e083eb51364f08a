//! What volumes and their types may do in input and output.

use haar_records::ec2::{Volume, VolumeType};
use haar_vm::DiskLimits;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;

/// The I/O credits of a full gp2 bucket.
const GP2_CREDITS: u64 = 5_400_000;

/// The limits of a volume ("Amazon EBS volume types", "Amazon EBS General Purpose SSD volumes", "Throughput Optimized HDD and
/// Cold HDD volumes", EBS User Guide).
pub(crate) fn of(volume: &Volume) -> DiskLimits {
    let size_gib = u64::from(volume.size_gib);
    let iops = u64::from(volume.iops.unwrap_or_default());
    match volume.volume_type {
        VolumeType::Gp2 => {
            let (burst_iops, burst_seconds) =
                if iops < 3_000 { (3_000, GP2_CREDITS / (3_000 - iops)) } else { (0, 0) };
            DiskLimits {
                iops,
                burst_iops,
                burst_seconds,
                bytes_per_second: if size_gib <= 170 { 128 * MIB } else { 250 * MIB },
                operation_bytes: 256 * KIB,
                ..DiskLimits::default()
            }
        }
        VolumeType::Gp3 => DiskLimits {
            iops,
            bytes_per_second: u64::from(volume.throughput.unwrap_or(125)) * MIB,
            operation_bytes: 256 * KIB,
            ..DiskLimits::default()
        },
        VolumeType::Io1 => DiskLimits {
            iops,
            bytes_per_second: (iops * 256 * KIB).min(500 * MIB).max(iops * 16 * KIB).min(1_000 * MIB),
            operation_bytes: 256 * KIB,
            ..DiskLimits::default()
        },
        VolumeType::Io2 => DiskLimits {
            iops,
            bytes_per_second: (iops * 256 * KIB).min(4_000 * MIB),
            operation_bytes: 256 * KIB,
            ..DiskLimits::default()
        },
        VolumeType::St1 => throughput_optimised(size_gib, (40, 500), (250, 500)),
        VolumeType::Sc1 => throughput_optimised(size_gib, (12, 192), (80, 250)),
        VolumeType::Standard => DiskLimits { iops: 200, bytes_per_second: 90 * MIB, ..DiskLimits::default() },
    }
}

/// Baseline and burst are MiB/s per TiB, each with its most; a full bucket holds a TiB of credits per TiB, and an operation
/// is a MiB.
fn throughput_optimised(size_gib: u64, baseline: (u64, u64), burst: (u64, u64)) -> DiskLimits {
    let rate = |(per_tib, most): (u64, u64)| (per_tib * MIB * size_gib / 1_024).min(most * MIB);
    let (baseline, burst) = (rate(baseline), rate(burst));
    let seconds = if burst > baseline { size_gib * (TIB >> 10) / (burst - baseline) } else { 0 };
    DiskLimits {
        iops: burst / MIB,
        bytes_per_second: baseline,
        burst_bytes_per_second: if seconds > 0 { burst } else { 0 },
        burst_seconds: seconds,
        operation_bytes: MIB,
        ..DiskLimits::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use haar_records::Tags;
    use haar_records::ec2::VolumeState;
    use time::OffsetDateTime;

    fn limits(volume_type: VolumeType, size_gib: u32, iops: Option<u32>) -> DiskLimits {
        of(&Volume {
            account: "123456789012".into(),
            region: "eu-central-1".into(),
            id: "vol-1".into(),
            size_gib,
            volume_type,
            iops,
            throughput: None,
            availability_zone: "eu-central-1a".into(),
            image_id: None,
            snapshot_id: None,
            create_time: OffsetDateTime::UNIX_EPOCH,
            state: VolumeState::Available,
            error: None,
            attachments: Vec::new(),
            modification: None,
            modified: Vec::new(),
            auto_enable_io: false,
            encryption: None,
            enable_io: false,
            tags: Tags::new(),
        })
    }

    #[test]
    fn types_have_the_limits_of_the_guide() {
        let gp2 = limits(VolumeType::Gp2, 100, Some(300));
        assert_eq!((gp2.iops, gp2.burst_iops, gp2.burst_seconds), (300, 3_000, 2_000));
        assert_eq!(limits(VolumeType::Gp2, 1_000, Some(3_000)).burst_iops, 0);
        let gp3 = limits(VolumeType::Gp3, 8, Some(3_000));
        assert_eq!((gp3.iops, gp3.bytes_per_second), (3_000, 125 << 20));
        // 12.5 TiB reach st1's most; its bucket of a TiB per TiB.
        let st1 = limits(VolumeType::St1, 2_048, None);
        assert_eq!((st1.bytes_per_second, st1.burst_bytes_per_second), (80 << 20, 500 << 20));
        assert_eq!(st1.burst_seconds, 2 * 1_048_576 / 420);
        assert_eq!(limits(VolumeType::St1, 16_384, None).burst_bytes_per_second, 0);
        assert_eq!(limits(VolumeType::Io1, 100, Some(64_000)).bytes_per_second, 1_000 << 20);
        assert_eq!(limits(VolumeType::Io1, 100, Some(100)).bytes_per_second, 25 << 20);
    }
}
