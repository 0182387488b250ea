package xapi

import (
	"strings"
	"time"
)

// RetryClass classifies errors by whether the same call may succeed when it is
// repeated.
type RetryClass int

const (
	// RetryNo: the call will fail again.
	RetryNo RetryClass = iota
	// RetryYes: the call may succeed after a while without any action.
	RetryYes
	// RetryAfterAction: the call can succeed only after an action of this
	// program (such as a login, or the use of another method) or of an
	// administrator; see CodeInfo.Hint.
	RetryAfterAction
)

func (c RetryClass) String() string {
	return [...]string{"no", "yes", "after action"}[c]
}

// CodeInfo describes an error code. For RetryYes, Attempts is the number of
// repetitions after the first try; the waits between them start at Delay and
// double up to MaxDelay.
type CodeInfo struct {
	Code     Code // an exact code, or a prefix that ends in '*'
	Class    RetryClass
	Attempts int
	Delay    time.Duration
	MaxDelay time.Duration
	Text     string // the failure, as a clause
	Hint     string // the next step for the user, as a sentence
}

// Waits of the retry classes: for busy objects that become free soon, for hosts
// that are starting, and for storage failures that deserve one more try.
const (
	soon    = 5 * time.Second
	booting = 10 * time.Second
	minute  = time.Minute
	hour    = time.Hour
)

// codes lists every code that a backup tool should recognise, with its retry
// class. Codes and parameters are those of xen-api
// ocaml/idl/datamodel_errors.ml, ocaml/xapi-consts/api_errors.ml and of sm's
// XE_SR_ERRORCODES.xml; the numbers of tries follow those of Xen Orchestra's
// client.
var codes = []CodeInfo{
	// Sessions and rights.
	{SessionInvalid, RetryAfterAction, 0, 0, 0, "the session has expired or was closed", "Log in again; this happens by itself once."},
	{SessionAuthenticationFailed, RetryNo, 0, 0, 0, "wrong user or password", "Give the password of the pool's user; it is not tried again, lest the account be locked."},
	{"SESSION_AUTHORIZATION_FAILED", RetryNo, 0, 0, 0, "the user has no role on this pool", "Give the user a role (vm-admin or above) in the pool's access settings."},
	{RBACPermissionDenied, RetryNo, 0, 0, 0, "the user's role does not allow this", "Use a user with the role vm-admin, pool-operator or pool-admin."},
	{"LICENCE_RESTRICTION", RetryAfterAction, 0, 0, 0, "the pool's licence does not include this feature", "Use a method that needs no licence, or license the pool."},
	{"LICENSE_RESTRICTION", RetryAfterAction, 0, 0, 0, "the pool's licence does not include this feature", "Use a method that needs no licence, or license the pool."},
	{"FEATURE_RESTRICTED", RetryAfterAction, 0, 0, 0, "the pool's licence does not include this feature", "Use a method that needs no licence, or license the pool."},

	// Hosts.
	{HostIsSlave, RetryAfterAction, 0, 0, 0, "this host is not the pool's master", "The address of the master is followed by itself."},
	{HostStillBooting, RetryYes, 12, booting, booting, "the host is still starting", "Wait for the toolstack to start."},
	{"HOST_HAS_NO_MANAGEMENT_IP", RetryYes, 12, booting, booting, "the host has no management address yet", "Wait for the host's network, or set its management interface."},
	{"HOST_MASTER_CANNOT_TALK_BACK", RetryYes, 6, booting, minute, "the master cannot reach the host", "Check the network between the pool's hosts."},
	{"HOST_UNKNOWN_TO_MASTER", RetryNo, 0, 0, 0, "the master does not know this host", "Rejoin the host to its pool, or use another address."},
	{"HOST_OFFLINE", RetryYes, 5, 15 * time.Second, 2 * minute, "the host is down", "Start the host, or wait until it is back."},
	{"HOST_NOT_LIVE", RetryYes, 5, 15 * time.Second, 2 * minute, "the host is not live", "Start the host, or wait until it is back."},
	{"CANNOT_CONTACT_HOST", RetryYes, 5, 15 * time.Second, 2 * minute, "the master cannot reach the host", "Check the host and the management network."},
	{NoHostsAvailable, RetryAfterAction, 0, 0, 0, "no running host can reach the storage", "Plug the SR (PBD) on a running host."},
	{"NOT_SUPPORTED_DURING_UPGRADE", RetryYes, 3, hour, 2 * hour, "the pool is being upgraded", "Run again when all hosts have the same version."},
	{"TOO_MANY_PENDING_TASKS", RetryYes, 10, soon, soon, "the pool is overloaded with waiting operations", "Wait, or run fewer backups at a time."},

	// Calls.
	{HandleInvalid, RetryNo, 0, 0, 0, "the object no longer exists", "Somebody deleted it meanwhile; run again."},
	{UUIDInvalid, RetryNo, 0, 0, 0, "no object has this UUID", "Check the UUID; the object may have been deleted."},
	{MethodUnknown, RetryAfterAction, 0, 0, 0, "the host does not know this call", "The host's version is too old for it; another method is needed."},
	{MessageRemoved, RetryAfterAction, 0, 0, 0, "the host no longer has this call", "The host's version is too new for it; another method is needed."},
	{ParameterCountMismatch, RetryAfterAction, 0, 0, 0, "the host's version has another form of this call", "The older form of the call is needed."},
	{MapDuplicateKey, RetryAfterAction, 0, 0, 0, "the key is already set", "Remove the key first."},
	{OtherOperationInProgress, RetryYes, 10, 15 * time.Second, 2 * minute, "the object is busy with another operation", "Wait until the other operation is over."},
	{"OPERATION_BLOCKED", RetryNo, 0, 0, 0, "an administrator has blocked this operation", "Remove it from the object's blocked operations."},
	{"OPERATION_NOT_ALLOWED", RetryNo, 0, 0, 0, "the operation is not allowed in the object's present state", "The reason stands in the brackets."},
	{TaskCancelled, RetryNo, 0, 0, 0, "the operation was cancelled", "Run again."},
	{"EVENTS_LOST", RetryAfterAction, 0, 0, 0, "events were lost", "Events are read again from the beginning."},
	{"EVENT_FROM_TOKEN_PARSE_FAILURE", RetryAfterAction, 0, 0, 0, "the place in the event stream is no longer known", "Events are read again from the beginning."},
	{"EVENT_SUBSCRIPTION_PARSE_FAILURE", RetryNo, 0, 0, 0, "the pool did not understand which events are wanted", "Please report this."},
	{"XAPI_HOOK_FAILED", RetryYes, 1, soon, soon, "a script on the host failed", "See the host's log for the script."},
	{"INTERNAL_ERROR", RetryYes, 1, soon, soon, "the pool failed unexpectedly", "See the host's xensource.log."},

	// Virtual machines.
	{VMBadPowerState, RetryAfterAction, 0, 0, 0, "the VM's power state does not allow this", "Bring the VM to one of the expected states."},
	{"VM_IS_TEMPLATE", RetryNo, 0, 0, 0, "this is a template, not a VM", "Name a VM."},
	{"VM_IS_SNAPSHOT", RetryNo, 0, 0, 0, "this is a VM snapshot, not a VM", "Name the VM itself."},
	{"VM_HAS_VUSBS", RetryAfterAction, 0, 0, 0, "the VM has a USB device passed through, so it cannot be snapshotted", "Detach the USB device."},
	{"VM_HAS_PCI_ATTACHED", RetryAfterAction, 0, 0, 0, "the VM has a PCI device passed through", "Take a disk snapshot without memory, or halt the VM."},
	{"VM_HAS_VGPU", RetryAfterAction, 0, 0, 0, "the VM has a virtual GPU", "Take a disk snapshot without memory, or halt the VM."},
	{"VM_LACKS_FEATURE", RetryAfterAction, 0, 0, 0, "the guest lacks the drivers that this needs", "Install the guest tools, or take a disk snapshot."},
	{"VM_NON_SUSPENDABLE", RetryAfterAction, 0, 0, 0, "the VM cannot be suspended", "Take a disk snapshot."},
	{"VM_IS_IMMOBILE", RetryAfterAction, 0, 0, 0, "the VM cannot be suspended", "Take a disk snapshot."},
	{"VM_SNAPSHOT_WITH_QUIESCE_NOT_SUPPORTED", RetryAfterAction, 0, 0, 0, "the guest cannot be quiesced: its VSS provider is missing or not running", "Install the Xen VSS provider in the guest (install-XenProvider.cmd of the Windows drivers), or take a plain snapshot."},
	{QuiesceTimedOut, RetryAfterAction, 0, 0, 0, "the guest did not freeze its disks within the 10 s that Windows gives it", "Try again when the pool is quieter; have no more than two disks on the VM, or spread them over several SRs."},
	{"VM_SNAPSHOT_WITH_QUIESCE_PLUGIN_DEOS_NOT_RESPOND", RetryAfterAction, 0, 0, 0, "the guest's VSS plug-in does not answer", "Start the guest's agent and the Xen VSS provider, or take a plain snapshot."},
	{"VM_SNAPSHOT_WITH_QUIESCE_*", RetryAfterAction, 0, 0, 0, "the guest could not be quiesced", "Take a plain snapshot."},
	{"VM_CHECKPOINT_*", RetryAfterAction, 0, 0, 0, "the VM could not be suspended or resumed for the checkpoint", "Check that the VM runs."},
	{"REVERT_ONLY_ALLOWED_ON_SNAPSHOT", RetryNo, 0, 0, 0, "only a VM snapshot can be reverted to", "Name a snapshot: xenkeep pool snapshot list shows them."},
	{"PROVISION_ONLY_ALLOWED_ON_TEMPLATE", RetryNo, 0, 0, 0, "only a template can become a VM in this way", "Name a template: xenkeep pool templates shows them."},
	{"VM_CANNOT_DELETE_DEFAULT_TEMPLATE", RetryNo, 0, 0, 0, "this template came with the product and cannot be deleted", "Leave it; templates that were made from snapshots can be deleted."},
	{"VM_NO_SUSPEND_SR", RetryAfterAction, 0, 0, 0, "the pool has no storage for memory images", "Set the pool's suspend-image SR."},
	{"VM_REQUIRES_SR", RetryAfterAction, 0, 0, 0, "the host cannot reach the VM's storage", "Plug the SR on this host, or take another one."},
	{"DUPLICATE_VM", RetryNo, 0, 0, 0, "a VM with this UUID is there already", "Import it as a new VM, or delete the other first."},
	{"DUPLICATE_MAC_SEED", RetryNo, 0, 0, 0, "another VM has the same seed for its MAC addresses", "Import it as a new VM, without keeping its identity."},
	{"VMSS_HAS_VM", RetryAfterAction, 0, 0, 0, "VMs belong to the schedule", "Take them out of it first."},
	{"INVALID_VALUE", RetryNo, 0, 0, 0, "the pool does not take this value", "The field and the value stand in the brackets."},
	{"VM_REVERT_FAILED", RetryNo, 0, 0, 0, "the VM could not be reverted", "The VM is now halted and may lack disks: look at it before anything else."},
	{"VM_ASSIGNED_TO_SNAPSHOT_SCHEDULE", RetryAfterAction, 0, 0, 0, "the VM belongs to a snapshot schedule", "Take it out of the schedule first."},

	// Disks.
	{VDIInUse, RetryYes, 10, soon, soon, "the disk is in use", "Detach it from its VM; a finished export may hold it for some seconds."},
	{VDIIOError, RetryYes, 1, soon, soon, "the host could not read or write the disk's stream", "Check the storage and its logs; a full read may work where a delta does not."},
	{VDITooLarge, RetryAfterAction, 0, 0, 0, "the disk is too large for the VHD format", "Export it in another way (raw, NBD)."},
	{VDIIncompatibleType, RetryAfterAction, 0, 0, 0, "this kind of disk does not allow the operation", "The base's data no longer exist: a full read is needed."},
	{"VDI_NO_CBT_METADATA", RetryAfterAction, 0, 0, 0, "the disk has no record of changed blocks", "Read it in full, or enable changed-block tracking."},
	{"VDI_CBT_ENABLED", RetryAfterAction, 0, 0, 0, "changed-block tracking is on, which forbids this", "Disable changed-block tracking first."},
	{"VDI_MISSING", RetryAfterAction, 0, 0, 0, "the disk's data are missing from the storage", "Rescan the SR."},
	{"VDI_NOT_AVAILABLE", RetryAfterAction, 0, 0, 0, "the disk is not available", "Rescan the SR."},
	{VDINotManaged, RetryNo, 0, 0, 0, "this is an internal disk of the storage driver", "Name a disk that is shown to users."},
	{"VDI_IS_SHARABLE", RetryNo, 0, 0, 0, "a sharable disk cannot be snapshotted", "Leave the disk out of the backup."},
	{"VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION", RetryNo, 0, 0, 0, "a disk that is reset on boot cannot be snapshotted", "Leave the disk out, or set its on-boot to persist."},
	{"VDI_READONLY", RetryNo, 0, 0, 0, "the target disk is read-only", "Choose another target."},
	{"VDI_TOO_SMALL", RetryNo, 0, 0, 0, "the target disk is too small", "Choose a target of at least the source's size."},
	{"VDI_NOT_SPARSE", RetryNo, 0, 0, 0, "the target disk cannot take a delta", "Choose a target on a thin SR."},
	{"VDI_IS_ENCRYPTED", RetryNo, 0, 0, 0, "the disk is encrypted", "It cannot be migrated."},
	{"DEVICE_ALREADY_EXISTS", RetryNo, 0, 0, 0, "the VM already has a device in this place", "Choose another device number."},
	{"DEVICE_ALREADY_DETACHED", RetryNo, 0, 0, 0, "the disk is not attached", "Nothing is to be done."},
	{"VDI_HAS_RRDS", RetryNo, 0, 0, 0, "the disk holds the pool's statistics", "Leave it alone."},
	{"VDI_IS_A_PHYSICAL_DEVICE", RetryNo, 0, 0, 0, "the disk is a physical device", "Leave it alone."},

	// Storage.
	{"SR_HAS_NO_PBDS", RetryAfterAction, 0, 0, 0, "the storage is not plugged on any host", "Plug the SR."},
	{"SR_NOT_ATTACHED", RetryAfterAction, 0, 0, 0, "the storage is not attached", "Plug the SR."},
	{"SR_OPERATION_NOT_SUPPORTED", RetryNo, 0, 0, 0, "the storage driver does not support this", "Another method is needed."},
	{"UNIMPLEMENTED_IN_SM_BACKEND", RetryNo, 0, 0, 0, "the storage driver cannot do this (raw LVM disks cannot be snapshotted)", "Leave the disk out, or convert it to VHD."},
	{"SR_FULL", RetryAfterAction, 0, 0, 0, "the storage is full", "Free space on the SR."},
	{SRNoSpace, RetryAfterAction, 0, 0, 0, "the storage has not enough free space", "Free space on the SR, or wait until deleted snapshots are coalesced."},
	{"SR_BACKEND_FAILURE_46", RetryYes, 3, soon, 20 * time.Second, "the disk is not available, perhaps still held by the storage's clean-up", "Wait for the SR's garbage collection."},
	{"SR_BACKEND_FAILURE_47", RetryYes, 3, soon, 20 * time.Second, "the storage is not available", "Check the storage's connection."},
	{"SR_BACKEND_FAILURE_66", RetryNo, 0, 0, 0, "the disk is of the wrong type (raw)", "Another method is needed."},
	{"SR_BACKEND_FAILURE_78", RetryYes, 1, soon, soon, "the disk could not be created", "See the host's SMlog."},
	{"SR_BACKEND_FAILURE_79", RetryNo, 0, 0, 0, "the disk's size is not allowed on this storage", "VHD disks end at 2040 GiB and cannot shrink."},
	{"SR_BACKEND_FAILURE_80", RetryYes, 1, soon, soon, "the disk could not be deleted", "See the host's SMlog."},
	{"SR_BACKEND_FAILURE_81", RetryYes, 1, soon, soon, "the disk could not be cloned", "See the host's SMlog."},
	{"SR_BACKEND_FAILURE_82", RetryYes, 1, soon, soon, "the disk could not be snapshotted", "See the host's SMlog."},
	{SRChainTooLong, RetryYes, 3, hour, 2 * hour, "the disk's chain of snapshots is too long", "Delete snapshots and wait until the storage has coalesced them."},
	{"SR_BACKEND_FAILURE_110", RetryNo, 0, 0, 0, "the disk could not be resized", "See the host's SMlog."},
	{"SR_BACKEND_FAILURE_181", RetryNo, 0, 0, 0, "the metadata of the LVM storage is damaged", "Have the SR looked at before anything else."},
	{"SR_BACKEND_FAILURE_200", RetryYes, 3, soon, 20 * time.Second, "the storage had an I/O error", "Check the storage."},
	{"SR_BACKEND_FAILURE_201", RetryYes, 3, soon, 20 * time.Second, "the storage asks to try again", "Try again."},
	{"SR_BACKEND_FAILURE_202", RetryYes, 3, soon, 20 * time.Second, "the storage driver failed", "See the host's SMlog."},
	{"SR_BACKEND_FAILURE_453", RetryYes, 1, soon, soon, "the host's disk process failed", "See the host's SMlog."},
	{CBTOnFailed, RetryYes, 1, soon, soon, "changed-block tracking could not be enabled", "See the host's SMlog."},
	{CBTOffFailed, RetryYes, 1, soon, soon, "changed-block tracking could not be disabled", "See the host's SMlog."},
	{CBTInconsistent, RetryNo, 0, 0, 0, "the record of changed blocks is inconsistent", "A full read is needed; tracking starts anew with it."},
	{"SR_BACKEND_FAILURE_460", RetryNo, 0, 0, 0, "the two disks are not of one history", "A full read is needed; tracking starts anew with it."},
	{"SR_BACKEND_FAILURE*", RetryNo, 0, 0, 0, "the storage driver failed", "See the host's SMlog."},
	{"SR_UNHEALTHY", RetryYes, 5, 15 * time.Second, 2 * minute, "the storage is unhealthy", "The advice stands in the brackets."},
	{"SR_DEVICE_IN_USE", RetryYes, 5, soon, soon, "the storage's device is in use", "Wait, or find what else uses it."},
	{"SR_NOT_EMPTY", RetryNo, 0, 0, 0, "the storage is not empty", "Remove its disks first."},
	{"DEFAULT_SR_NOT_FOUND", RetryAfterAction, 0, 0, 0, "the pool has no default storage", "Name an SR, or set the pool's default."},
	{"NETWORK_INCOMPATIBLE_PURPOSES", RetryNo, 0, 0, 0, "NBD with and without TLS cannot both be on in one pool", "Remove the other purpose from the pool's networks."},

	// Imports of whole VMs.
	{NotNewerVersion, RetryNo, 0, 0, 0, "a VM of this UUID is on the pool, and the file holds no newer version of it", "Delete the VM that is there first, or import the file as a new VM, without --preserve."},
	{"IMPORT_INCOMPATIBLE_VERSION", RetryNo, 0, 0, 0, "the file was made by a newer version", "Import it into a pool of that version."},
	{"IMPORT_ERROR*", RetryNo, 0, 0, 0, "the VM's file cannot be imported", "The reason stands in the brackets."},
}

var codeTable = func() map[Code]CodeInfo {
	m := make(map[Code]CodeInfo, len(codes))
	for _, info := range codes {
		m[info.Code] = info
	}
	return m
}()

// info returns the table entry of an error. Some codes have different meanings
// in different calls or with different parameters.
func (e *Error) info() (CodeInfo, bool) {
	info, ok := Lookup(e.Code)
	switch {
	case e.heldElsewhere():
		held, _ := Lookup(VDIInUse)
		info.Class, info.Attempts, info.Delay, info.MaxDelay = held.Class, held.Attempts, held.Delay, held.MaxDelay
		info.Text = "the disk is attached to a control domain in another mode"
		info.Hint = "A read of the disk holds it for some seconds after its end; if it stays, look for VBDs of the control domain."
	case e.Code == NoHostsAvailable && startsVM(e.Method):
		info.Text = "no running host can start the VM: memory is short, or no host reaches all its storage and networks"
		info.Hint = "Free memory on a host, or see that one host is plugged to all SRs and networks of the VM."
	}
	return info, ok
}

// startsVM reports whether a call starts a VM on a host.
func startsVM(method string) bool {
	switch method {
	case "VM.start", "VM.start_on", "VM.resume", "VM.resume_on":
		return true
	}
	return false
}

// Lookup returns the table entry of a code.
func Lookup(code Code) (CodeInfo, bool) {
	if info, ok := codeTable[code]; ok {
		return info, true
	}
	for _, info := range codes {
		if prefix, ok := strings.CutSuffix(string(info.Code), "*"); ok && strings.HasPrefix(string(code), prefix) {
			return info, true
		}
	}
	return CodeInfo{Code: code}, false
}

// Codes returns the whole table, with one entry for each code or family of
// codes.
func Codes() []CodeInfo { return append([]CodeInfo(nil), codes...) }
