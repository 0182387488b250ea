package xapi

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// Object holds the parts that all records have in common: their reference, and
// the JSON from which they were decoded, which includes the fields that this
// package does not define.
type Object struct {
	Ref Ref
	Raw json.RawMessage
}

func (o *Object) identify(ref Ref, raw json.RawMessage) { o.Ref, o.Raw = ref, raw }

type recordPtr[T any] interface {
	*T
	identify(Ref, json.RawMessage)
}

// DecodeRecord decodes one record of type T from its JSON and keeps the JSON.
// It also decodes records that a backup has stored.
func DecodeRecord[T any, P recordPtr[T]](ref Ref, raw []byte) (T, error) {
	var r T
	if err := json.Unmarshal(raw, &r); err != nil {
		return r, fmt.Errorf("record %s: %w", ref, err)
	}
	P(&r).identify(ref, bytes.Clone(raw))
	return r, nil
}

// VM is a virtual machine, a template, a snapshot of one, or a control domain:
// see Real.
type VM struct {
	Object            `json:"-"`
	UUID              string            `json:"uuid"`
	NameLabel         string            `json:"name_label"`
	NameDescription   string            `json:"name_description"`
	PowerState        string            `json:"power_state"` // Halted, Paused, Running, Suspended
	IsATemplate       bool              `json:"is_a_template"`
	IsDefaultTemplate bool              `json:"is_default_template"`
	IsASnapshot       bool              `json:"is_a_snapshot"`
	IsControlDomain   bool              `json:"is_control_domain"`
	IsVMSSSnapshot    bool              `json:"is_vmss_snapshot"`
	SnapshotOf        Ref               `json:"snapshot_of"`
	Snapshots         []Ref             `json:"snapshots"`
	SnapshotTime      Time              `json:"snapshot_time"`
	SnapshotInfo      map[string]string `json:"snapshot_info"`
	SnapshotMetadata  string            `json:"snapshot_metadata"`
	SnapshotSchedule  Ref               `json:"snapshot_schedule"`
	Parent            Ref               `json:"parent"`
	Children          []Ref             `json:"children"`
	VBDs              []Ref             `json:"VBDs"`
	VIFs              []Ref             `json:"VIFs"`
	VUSBs             []Ref             `json:"VUSBs"`
	VGPUs             []Ref             `json:"VGPUs"`
	VTPMs             []Ref             `json:"VTPMs"`
	AttachedPCIs      []Ref             `json:"attached_PCIs"`
	SuspendVDI        Ref               `json:"suspend_VDI"`
	SuspendSR         Ref               `json:"suspend_SR"`
	ResidentOn        Ref               `json:"resident_on"`
	Affinity          Ref               `json:"affinity"`
	GuestMetrics      Ref               `json:"guest_metrics"`
	Metrics           Ref               `json:"metrics"`
	AllowedOperations []string          `json:"allowed_operations"`
	CurrentOperations map[string]string `json:"current_operations"`
	BlockedOperations map[string]string `json:"blocked_operations"`
	OtherConfig       map[string]string `json:"other_config"`
	Platform          map[string]string `json:"platform"`
	XenstoreData      map[string]string `json:"xenstore_data"`
	HVMBootPolicy     string            `json:"HVM_boot_policy"`
	HVMBootParams     map[string]string `json:"HVM_boot_params"`
	NVRAM             map[string]string `json:"NVRAM"`
	BIOSStrings       map[string]string `json:"bios_strings"`
	DomainType        string            `json:"domain_type"`
	MemoryStaticMax   Int               `json:"memory_static_max"`
	MemoryStaticMin   Int               `json:"memory_static_min"`
	MemoryDynamicMax  Int               `json:"memory_dynamic_max"`
	MemoryDynamicMin  Int               `json:"memory_dynamic_min"`
	VCPUsMax          Int               `json:"VCPUs_max"`
	VCPUsAtStartup    Int               `json:"VCPUs_at_startup"`
	Tags              []string          `json:"tags"`
	HARestartPriority string            `json:"ha_restart_priority"`
	HAAlwaysRun       bool              `json:"ha_always_run"`
	GenerationID      string            `json:"generation_id"`
	HardwarePlatform  Int               `json:"hardware_platform_version"`
	Appliance         Ref               `json:"appliance"`
	HasVendorDevice   bool              `json:"has_vendor_device"`
}

// Real reports whether v is a VM in the everyday sense: not a template, a
// snapshot or a control domain. Note that snapshots are templates too.
func (v *VM) Real() bool { return !v.IsATemplate && !v.IsASnapshot && !v.IsControlDomain }

// VDI is a virtual disk image.
type VDI struct {
	Object              `json:"-"`
	UUID                string            `json:"uuid"`
	NameLabel           string            `json:"name_label"`
	NameDescription     string            `json:"name_description"`
	SR                  Ref               `json:"SR"`
	VBDs                []Ref             `json:"VBDs"`
	VirtualSize         Int               `json:"virtual_size"`         // bytes
	PhysicalUtilisation Int               `json:"physical_utilisation"` // bytes
	Type                string            `json:"type"`                 // user, system, suspend, cbt_metadata, ...
	Sharable            bool              `json:"sharable"`
	ReadOnly            bool              `json:"read_only"`
	Managed             bool              `json:"managed"`
	Missing             bool              `json:"missing"`
	Location            string            `json:"location"`
	SMConfig            map[string]string `json:"sm_config"`
	OtherConfig         map[string]string `json:"other_config"`
	XenstoreData        map[string]string `json:"xenstore_data"`
	IsASnapshot         bool              `json:"is_a_snapshot"`
	SnapshotOf          Ref               `json:"snapshot_of"`
	Snapshots           []Ref             `json:"snapshots"`
	SnapshotTime        Time              `json:"snapshot_time"`
	CBTEnabled          bool              `json:"cbt_enabled"`
	OnBoot              string            `json:"on_boot"` // persist, reset
	AllowCaching        bool              `json:"allow_caching"`
	Tags                []string          `json:"tags"`
	AllowedOperations   []string          `json:"allowed_operations"`
	CurrentOperations   map[string]string `json:"current_operations"`
}

// VBD connects a VM with a VDI.
type VBD struct {
	Object            `json:"-"`
	UUID              string            `json:"uuid"`
	VM                Ref               `json:"VM"`
	VDI               Ref               `json:"VDI"`
	Device            string            `json:"device"` // xvda; may be empty until the first boot
	UserDevice        string            `json:"userdevice"`
	Bootable          bool              `json:"bootable"`
	Mode              string            `json:"mode"` // RO, RW
	Type              string            `json:"type"` // Disk, CD, Floppy
	Empty             bool              `json:"empty"`
	Unpluggable       bool              `json:"unpluggable"`
	CurrentlyAttached bool              `json:"currently_attached"`
	OtherConfig       map[string]string `json:"other_config"`
	QoSAlgorithmType  string            `json:"qos_algorithm_type"`
	QoSParams         map[string]string `json:"qos_algorithm_params"`
}

// VIF connects a VM with a network.
type VIF struct {
	Object            `json:"-"`
	UUID              string            `json:"uuid"`
	VM                Ref               `json:"VM"`
	Network           Ref               `json:"network"`
	Device            string            `json:"device"`
	MAC               string            `json:"MAC"`
	MACAutogenerated  bool              `json:"MAC_autogenerated"`
	MTU               Int               `json:"MTU"`
	OtherConfig       map[string]string `json:"other_config"`
	CurrentlyAttached bool              `json:"currently_attached"`
	LockingMode       string            `json:"locking_mode"`
	IPv4Allowed       []string          `json:"ipv4_allowed"`
	IPv6Allowed       []string          `json:"ipv6_allowed"`
	QoSAlgorithmType  string            `json:"qos_algorithm_type"`
	QoSParams         map[string]string `json:"qos_algorithm_params"`
}

// SR is a storage repository. All sizes are bytes.
type SR struct {
	Object              `json:"-"`
	UUID                string            `json:"uuid"`
	NameLabel           string            `json:"name_label"`
	NameDescription     string            `json:"name_description"`
	Type                string            `json:"type"`
	ContentType         string            `json:"content_type"`
	Shared              bool              `json:"shared"`
	PhysicalSize        Int               `json:"physical_size"`
	PhysicalUtilisation Int               `json:"physical_utilisation"`
	VirtualAllocation   Int               `json:"virtual_allocation"`
	VDIs                []Ref             `json:"VDIs"`
	PBDs                []Ref             `json:"PBDs"`
	SMConfig            map[string]string `json:"sm_config"`
	OtherConfig         map[string]string `json:"other_config"`
	IsToolsSR           bool              `json:"is_tools_sr"`
	AllowedOperations   []string          `json:"allowed_operations"`
	CurrentOperations   map[string]string `json:"current_operations"`
}

// PBD connects a host with an SR. DeviceConfig may hold storage passwords.
type PBD struct {
	Object            `json:"-"`
	UUID              string            `json:"uuid"`
	Host              Ref               `json:"host"`
	SR                Ref               `json:"SR"`
	DeviceConfig      map[string]string `json:"device_config"`
	CurrentlyAttached bool              `json:"currently_attached"`
	OtherConfig       map[string]string `json:"other_config"`
}

// Network is a virtual network.
type Network struct {
	Object          `json:"-"`
	UUID            string            `json:"uuid"`
	NameLabel       string            `json:"name_label"`
	NameDescription string            `json:"name_description"`
	Bridge          string            `json:"bridge"`
	PIFs            []Ref             `json:"PIFs"`
	VIFs            []Ref             `json:"VIFs"`
	MTU             Int               `json:"MTU"`
	Purpose         []string          `json:"purpose"` // nbd, insecure_nbd
	OtherConfig     map[string]string `json:"other_config"`
	Managed         bool              `json:"managed"`
}

// PIF is a host's interface on a network.
type PIF struct {
	Object            `json:"-"`
	UUID              string   `json:"uuid"`
	Device            string   `json:"device"`
	IP                string   `json:"IP"`
	IPv6              []string `json:"IPv6"`
	Network           Ref      `json:"network"`
	Host              Ref      `json:"host"`
	CurrentlyAttached bool     `json:"currently_attached"`
	Management        bool     `json:"management"`
}

// Host is a member of the pool.
type Host struct {
	Object          `json:"-"`
	UUID            string            `json:"uuid"`
	NameLabel       string            `json:"name_label"`
	Hostname        string            `json:"hostname"`
	Address         string            `json:"address"` // bare IP or name of its management interface
	Enabled         bool              `json:"enabled"`
	Metrics         Ref               `json:"metrics"`
	PBDs            []Ref             `json:"PBDs"`
	PIFs            []Ref             `json:"PIFs"`
	ControlDomain   Ref               `json:"control_domain"`
	SoftwareVersion map[string]string `json:"software_version"`
	LicenseParams   map[string]string `json:"license_params"`
	OtherConfig     map[string]string `json:"other_config"`
	Edition         string            `json:"edition"`
	APIVersionMajor Int               `json:"API_version_major"`
	APIVersionMinor Int               `json:"API_version_minor"`
	HTTPSOnly       bool              `json:"https_only"`
	Certificates    []Ref             `json:"certificates"`
	TLSVerification bool              `json:"tls_verification_enabled"`
}

// HostMetrics shows whether a host is alive.
type HostMetrics struct {
	Object      `json:"-"`
	UUID        string `json:"uuid"`
	Live        bool   `json:"live"`
	MemoryTotal Int    `json:"memory_total"`
	MemoryFree  Int    `json:"memory_free"`
	LastUpdated Time   `json:"last_updated"`
}

// Pool is the pool's own record; there is exactly one.
type Pool struct {
	Object          `json:"-"`
	UUID            string            `json:"uuid"`
	NameLabel       string            `json:"name_label"`
	Master          Ref               `json:"master"`
	DefaultSR       Ref               `json:"default_SR"`
	OtherConfig     map[string]string `json:"other_config"`
	HAEnabled       bool              `json:"ha_enabled"`
	Restrictions    map[string]string `json:"restrictions"`
	TLSVerification bool              `json:"tls_verification_enabled"`
}

// SM is a storage driver.
type SM struct {
	Object       `json:"-"`
	UUID         string         `json:"uuid"`
	NameLabel    string         `json:"name_label"`
	Type         string         `json:"type"` // same values as SR.Type
	Features     map[string]Int `json:"features"`
	Capabilities []string       `json:"capabilities"`
	ImageFormats []string       `json:"supported_image_formats"`
	Version      string         `json:"version"`
	Vendor       string         `json:"vendor"`
}

// VMGuestMetrics holds the data reported by the tools inside a guest.
type VMGuestMetrics struct {
	Object           `json:"-"`
	UUID             string            `json:"uuid"`
	OSVersion        map[string]string `json:"os_version"`
	PVDriversVersion map[string]string `json:"PV_drivers_version"`
	Networks         map[string]string `json:"networks"`
	Live             bool              `json:"live"`
	LastUpdated      Time              `json:"last_updated"`
}

// Certificate is a certificate that the pool has installed on a host, or that
// it trusts.
type Certificate struct {
	Object            `json:"-"`
	UUID              string `json:"uuid"`
	Name              string `json:"name"`
	Type              string `json:"type"` // host, host_internal, ca
	Host              Ref    `json:"host"`
	NotBefore         Time   `json:"not_before"`
	NotAfter          Time   `json:"not_after"`
	Fingerprint       string `json:"fingerprint"`        // SHA-256
	FingerprintSHA256 string `json:"fingerprint_sha256"` // on newer hosts; the same kind of sum
}

// Task is an operation on the pool. Its Status, never its Progress, shows
// whether it has ended.
type Task struct {
	Object            `json:"-"`
	UUID              string            `json:"uuid"`
	NameLabel         string            `json:"name_label"`
	NameDescription   string            `json:"name_description"`
	Status            string            `json:"status"`   // pending, success, failure, cancelling, cancelled
	Progress          Float             `json:"progress"` // 0 to 1
	Created           Time              `json:"created"`
	Finished          Time              `json:"finished"`
	Result            string            `json:"result"`
	ErrorInfo         []string          `json:"error_info"`
	ResidentOn        Ref               `json:"resident_on"`
	OtherConfig       map[string]string `json:"other_config"`
	CurrentOperations map[string]string `json:"current_operations"`
	AllowedOperations []string          `json:"allowed_operations"`
}
