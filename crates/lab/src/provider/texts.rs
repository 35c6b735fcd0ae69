//! Texts that Windows shows in the host's language: never to be compared by a client, so the lab speaks more than one.

/// A host's display language.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Language {
    /// `en-US`.
    #[default]
    English,
    /// `ja-JP`.
    Japanese,
}

/// What is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phrase {
    VirtualMachine,
    VirtualMachineDescription,
    HostingSystem,
    HostingSystemDescription,
    OperatingNormally,
    Degraded,
    CreatingSnapshot,
    ApplyingSnapshot,
    DeletingSnapshot,
    MergingDisks,
    Exporting,
    Migrating,
    SettingsOfMachine,
    ServiceOk,
    ServiceNoContact,
    ServiceLostContact,
    ServiceDegraded,
    JobRunning,
    JobCompleted,
    JobFailed,
    JobTerminated,
    HardDiskImage,
    HardDrive,
    PhysicalDrive,
    OpticalDrive,
    OpticalImage,
    IdeController,
    ScsiController,
    Memory,
    Processor,
    NetworkAdapter,
    LegacyNetworkAdapter,
    Connection,
    FibreChannelAdapter,
    Job,
}

impl Language {
    /// As in `xml:lang`.
    pub fn tag(self) -> &'static str {
        match self {
            Self::English => "en-US",
            Self::Japanese => "ja-JP",
        }
    }

    /// The words.
    pub(super) fn say(self, phrase: Phrase) -> &'static str {
        let (english, japanese) = phrase.words();
        match self {
            Self::English => english,
            Self::Japanese => japanese,
        }
    }
}

impl Phrase {
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::VirtualMachine => ("Virtual Machine", "仮想マシン"),
            Self::VirtualMachineDescription => {
                ("Microsoft Virtual Machine", "Microsoft 仮想マシン")
            }
            Self::HostingSystem => ("Hosting Computer System", "ホスト コンピューター システム"),
            Self::HostingSystemDescription => (
                "Microsoft Hosting Computer System",
                "Microsoft ホスト コンピューター システム",
            ),
            Self::OperatingNormally => ("Operating normally", "正常に動作しています"),
            Self::Degraded => ("Degraded", "低下"),
            Self::CreatingSnapshot => ("Creating checkpoint", "チェックポイントを作成しています"),
            Self::ApplyingSnapshot => ("Applying checkpoint", "チェックポイントを適用しています"),
            Self::DeletingSnapshot => ("Deleting checkpoint", "チェックポイントを削除しています"),
            Self::MergingDisks => ("Merging disks", "ディスクを結合しています"),
            Self::Exporting => (
                "Exporting virtual machine",
                "仮想マシンをエクスポートしています",
            ),
            Self::Migrating => ("Migrating virtual machine", "仮想マシンを移行しています"),
            Self::SettingsOfMachine => ("Virtual Machine Settings", "仮想マシンの設定"),
            Self::ServiceOk => ("OK", "OK"),
            Self::ServiceNoContact => ("No Contact", "接続なし"),
            Self::ServiceLostContact => ("Lost Communication", "通信の切断"),
            Self::ServiceDegraded => ("Degraded", "低下"),
            Self::JobRunning => ("Job is running", "ジョブは実行中です"),
            Self::JobCompleted => (
                "The job completed successfully.",
                "ジョブは正常に完了しました。",
            ),
            Self::JobFailed => ("The job failed.", "ジョブは失敗しました。"),
            Self::JobTerminated => ("The job was terminated.", "ジョブは終了させられました。"),
            Self::HardDiskImage => ("Hard Disk Image", "ハード ディスク イメージ"),
            Self::HardDrive => ("Hard Drive", "ハード ドライブ"),
            Self::PhysicalDrive => ("Physical Disk Drive", "物理ディスク ドライブ"),
            Self::OpticalDrive => ("DVD Drive", "DVD ドライブ"),
            Self::OpticalImage => ("ISO Disk Image", "ISO ディスク イメージ"),
            Self::IdeController => ("IDE Controller", "IDE コントローラー"),
            Self::ScsiController => ("SCSI Controller", "SCSI コントローラー"),
            Self::Memory => ("Memory", "メモリ"),
            Self::Processor => ("Processor", "プロセッサ"),
            Self::NetworkAdapter => ("Network Adapter", "ネットワーク アダプター"),
            Self::LegacyNetworkAdapter => {
                ("Legacy Network Adapter", "レガシ ネットワーク アダプター")
            }
            Self::Connection => (
                "Ethernet Port Allocation Setting Data",
                "動的イーサネット スイッチ ポート",
            ),
            Self::FibreChannelAdapter => {
                ("Fibre Channel Adapter", "ファイバー チャネル アダプター")
            }
            Self::Job => ("Virtual machine job", "仮想マシンのジョブ"),
        }
    }
}
