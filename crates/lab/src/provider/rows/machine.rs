//! The few classes of `root/cimv2` that clients of Hyper-V ask for: what machine this is.

use wsman::cim::CimInstance;

use super::{Scene, datetime, row};
use crate::estate::{Volume, VolumeKind, WindowsGeneration};
use crate::provider::identity::CIMV2;

/// Memory of every host: 256 GiB.
const MEMORY_BYTES: u64 = 256 << 30;
/// Cores of every host's one processor.
const CORES: u32 = 32;

/// `Caption` of the operating system.
fn product(windows: WindowsGeneration) -> &'static str {
    match windows {
        WindowsGeneration::Server2012R2 => "Microsoft Windows Server 2012 R2 Datacenter",
        WindowsGeneration::Server2016 => "Microsoft Windows Server 2016 Datacenter",
        WindowsGeneration::Server2019 => "Microsoft Windows Server 2019 Datacenter",
        WindowsGeneration::Server2022 => "Microsoft Windows Server 2022 Datacenter",
        WindowsGeneration::Server2025 => "Microsoft Windows Server 2025 Datacenter",
    }
}

/// `10.0.20348`.
pub(in crate::provider) fn version(windows: WindowsGeneration) -> String {
    format!("{}.{}", windows.version(), windows.build())
}

/// `Win32_OperatingSystem`.
pub(in crate::provider) fn operating_system_row(scene: &Scene<'_>) -> CimInstance {
    let host = scene.host;
    row(&CIMV2, "Win32_OperatingSystem")
        .with("BuildNumber", host.windows.build().to_string())
        .with("BuildType", "Multiprocessor Free")
        .with("CSCreationClassName", "Win32_ComputerSystem")
        .with("CSName", host.name.to_string())
        .with("Caption", product(host.windows))
        .with("CreationClassName", "Win32_OperatingSystem")
        .with("FreePhysicalMemory", MEMORY_BYTES / 2 / 1024)
        .with("FreeVirtualMemory", MEMORY_BYTES / 2 / 1024)
        .with("InstallDate", datetime(host.booted))
        .with("LastBootUpTime", datetime(host.booted))
        .with("LocalDateTime", datetime(scene.now()))
        .with(
            "Locale",
            if scene.language.tag() == "ja-JP" {
                "0411"
            } else {
                "0409"
            },
        )
        .with("MUILanguages", vec![scene.language.tag()])
        .with("Manufacturer", "Microsoft Corporation")
        .with(
            "Name",
            format!(
                "{}|C:\\Windows|\\Device\\Harddisk0\\Partition4",
                product(host.windows)
            ),
        )
        .with("NumberOfProcesses", 60_u32)
        .with("OSArchitecture", "64-bit")
        .with("OSType", 18_u16)
        .with("OperatingSystemSKU", 8_u32)
        .with("ProductType", 3_u32)
        .with("ServicePackMajorVersion", 0_u16)
        .with("ServicePackMinorVersion", 0_u16)
        .with("Status", "OK")
        .with("SystemDirectory", "C:\\Windows\\system32")
        .with("SystemDrive", "C:")
        .with("TotalVirtualMemorySize", MEMORY_BYTES / 1024)
        .with("TotalVisibleMemorySize", MEMORY_BYTES / 1024)
        .with("Version", version(host.windows))
        .with("WindowsDirectory", "C:\\Windows")
}

/// `Win32_ComputerSystem`.
pub(in crate::provider) fn computer_system_row(scene: &Scene<'_>) -> CimInstance {
    let host = scene.host;
    let domain = if host.domain.is_empty() {
        "WORKGROUP"
    } else {
        host.domain.as_str()
    };
    row(&CIMV2, "Win32_ComputerSystem")
        .with("Caption", host.name.to_string())
        .with("CreationClassName", "Win32_ComputerSystem")
        .with("DNSHostName", host.name.as_str().to_lowercase())
        .with("Domain", domain)
        .with("DomainRole", if host.domain.is_empty() { 2_u16 } else { 3 })
        .with("HypervisorPresent", true)
        .with("Manufacturer", "Hikae Lab")
        .with("Model", "Simulated Host")
        .with("Name", host.name.to_string())
        .with("NumberOfLogicalProcessors", CORES * 2)
        .with("NumberOfProcessors", 1_u32)
        .with("PartOfDomain", !host.domain.is_empty())
        .with("Status", "OK")
        .with("SystemType", "x64-based PC")
        .with("TotalPhysicalMemory", MEMORY_BYTES)
}

/// `Win32_ComputerSystemProduct`: its UUID follows from the host's name.
pub(in crate::provider) fn product_row(scene: &Scene<'_>) -> CimInstance {
    let name = scene.host.name.as_str().to_lowercase();
    let mut bytes = [0; 16];
    blake3::Hasher::new()
        .update(b"machine")
        .update(name.as_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    let id = uuid::Builder::from_random_bytes(bytes).into_uuid();
    row(&CIMV2, "Win32_ComputerSystemProduct")
        .with("Caption", "Computer System Product")
        .with("IdentifyingNumber", format!("LAB-{}", scene.host.name))
        .with("Name", "Simulated Host")
        .with("UUID", id.to_string().to_uppercase())
        .with("Vendor", "Hikae Lab")
        .with("Version", "1.0")
}

/// `Win32_Processor`: one.
pub(in crate::provider) fn processor_row(scene: &Scene<'_>) -> CimInstance {
    row(&CIMV2, "Win32_Processor")
        .with("AddressWidth", 64_u16)
        .with("Architecture", 9_u16)
        .with("Caption", "Intel64 Family 6 Model 85 Stepping 7")
        .with("CreationClassName", "Win32_Processor")
        .with("CurrentClockSpeed", 2300_u32)
        .with("DataWidth", 64_u16)
        .with("DeviceID", "CPU0")
        .with("Family", 179_u16)
        .with("LoadPercentage", 10_u16)
        .with("Manufacturer", "GenuineIntel")
        .with("MaxClockSpeed", 2300_u32)
        .with("Name", "Simulated CPU @ 2.30GHz")
        .with("NumberOfCores", CORES)
        .with("NumberOfLogicalProcessors", CORES * 2)
        .with("SocketDesignation", "CPU 0")
        .with("Status", "OK")
        .with("SystemCreationClassName", "Win32_ComputerSystem")
        .with("SystemName", scene.host.name.to_string())
}

/// `CIM_DataFile`: of all files of a host only the management service's program, whose version is Hyper-V's.
pub(in crate::provider) fn program_row(scene: &Scene<'_>) -> CimInstance {
    row(&CIMV2, "CIM_DataFile")
        .with("CSCreationClassName", "Win32_ComputerSystem")
        .with("CSName", scene.host.name.to_string())
        .with("Caption", "c:\\windows\\system32\\vmms.exe")
        .with("CreationClassName", "CIM_LogicalFile")
        .with("Description", "c:\\windows\\system32\\vmms.exe")
        .with("Drive", "c:")
        .with("Extension", "exe")
        .with("FSCreationClassName", "Win32_FileSystem")
        .with("FSName", "NTFS")
        .with("FileName", "vmms")
        .with("Manufacturer", "Microsoft Corporation")
        .with("Name", "c:\\windows\\system32\\vmms.exe")
        .with("Path", "\\windows\\system32\\")
        .with("Version", format!("{}.1", version(scene.host.windows)))
}

/// `Win32_Volume`: the host's own volumes.
pub(in crate::provider) fn volume_rows(scene: &Scene<'_>) -> Vec<CimInstance> {
    let storage = scene.estate.storage();
    let mut rows = Vec::new();
    for volume in storage.volumes() {
        let VolumeKind::Local { host, letter } = &volume.kind else {
            continue;
        };
        if *host != scene.host.name {
            continue;
        }
        rows.push(volume_row(scene, volume, *letter));
    }
    rows
}

fn volume_row(scene: &Scene<'_>, volume: &Volume, letter: char) -> CimInstance {
    let free = scene.estate.storage().free_bytes(volume.id);
    row(&CIMV2, "Win32_Volume")
        .with("BlockSize", 4096_u64)
        .with("Capacity", volume.capacity_bytes)
        .with("Caption", format!("{letter}:\\"))
        .with("DeviceID", format!("\\\\?\\Volume{{{}}}\\", volume.guid))
        .with("DriveLetter", format!("{letter}:"))
        .with("DriveType", 3_u32)
        .with("FileSystem", "NTFS")
        .with("FreeSpace", free)
        .with("Name", format!("{letter}:\\"))
        .with("SystemName", scene.host.name.to_string())
}
