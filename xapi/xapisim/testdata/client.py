"""A backup of one VM with nothing but Python's standard library.

usage: client.py URL USER PASSWORD VM-UUID FOLDER

Logs in over XML-RPC, snapshots the VM with changed-block tracking, exports its
first disk, imports it into a new one, exports and compares that one, asks for
the changed blocks, waits for events, and tidies up. Prints what it saw as JSON.
"""
import base64, http.client, json, ssl, sys, urllib.parse, xmlrpc.client

url, user, password, vm_uuid, folder = sys.argv[1:]
context = ssl._create_unverified_context()
proxy = xmlrpc.client.ServerProxy(url, context=context)


def call(name, *args):
    method = proxy
    for part in name.split("."):
        method = getattr(method, part)
    answer = method(*args)
    if answer["Status"] != "Success":
        raise RuntimeError(answer["ErrorDescription"])
    return answer["Value"]


def transfer(method, path, query, body=None):
    where = urllib.parse.urlsplit(url)
    conn = http.client.HTTPSConnection(where.hostname, where.port, context=context, timeout=30)
    conn.request(method, path + "?" + urllib.parse.urlencode(query), body)
    answer = conn.getresponse()
    data = answer.read()
    conn.close()
    if answer.status != 200:
        raise RuntimeError(answer.status)
    return data


def finished(task):
    token = ""
    while True:
        record = call("task.get_record", session, task)
        if record["status"] != "pending":
            call("task.destroy", session, task)
            return record
        token = call("event.from", session, ["task/" + task], token, 30.1)["token"]


def export(vdi, form):
    task = call("task.create", session, "export", "")
    data = transfer("GET", "/export_raw_vdi/", {"session_id": session, "task_id": task, "vdi": vdi, "format": form})
    return data, finished(task)["status"]


session = call("session.login_with_password", user, password, "1.0", "python")
vm = call("VM.get_by_uuid", session, vm_uuid)
record = call("VM.get_record", session, vm)
disks = {}
for ref in record["VBDs"]:
    vbd = call("VBD.get_record", session, ref)
    if vbd["type"] == "Disk":
        disks[vbd["userdevice"]] = vbd["VDI"]
call("VDI.enable_cbt", session, disks["0"])
snapshots = []
for name in ("one", "two"):
    task = call("Async.VM.snapshot", session, vm, name)
    done = finished(task)
    snapshots.append(done["result"].replace("<value>", "").replace("</value>", ""))
first = []
for snapshot in snapshots:
    for ref in call("VM.get_VBDs", session, snapshot):
        vbd = call("VBD.get_record", session, ref)
        if vbd["type"] == "Disk" and vbd["userdevice"] == "0":
            first.append(vbd["VDI"])
vhd, vhd_status = export(first[0], "vhd")
raw, raw_status = export(first[0], "raw")
changed = base64.b64decode(call("VDI.list_changed_blocks", session, first[0], first[1]))
target = call("VDI.create", session, {
    "name_label": "copy", "name_description": "", "SR": call("VDI.get_SR", session, disks["0"]),
    "virtual_size": str(len(raw)), "type": "user", "sharable": False, "read_only": False, "other_config": {},
})
task = call("task.create", session, "import", "")
transfer("PUT", "/import_raw_vdi/", {"session_id": session, "task_id": task, "vdi": target, "format": "vhd"}, vhd)
import_status = finished(task)["status"]
copy, _ = export(target, "raw")
try:
    call("VM.get_record", session, "OpaqueRef:none")
    error = []
except RuntimeError as e:
    error = e.args[0]
call("VDI.destroy", session, target)
for snapshot in snapshots:
    call("VM.destroy", session, snapshot)
for vdi in call("VDI.get_snapshots", session, disks["0"]) + call("VDI.get_snapshots", session, disks["1"]):
    call("VDI.destroy", session, vdi)
call("VDI.disable_cbt", session, disks["0"])
with open(folder + "/disk.raw", "wb") as f:
    f.write(raw)
classes = sorted({name.split(".")[0] for name in proxy.system.listMethods() if name.endswith(".get_all_records")})
counts = {c: len(call(c + ".get_all_records", session)) for c in ("VM", "VDI", "SR", "host", "task")}
methods = len(classes)
call("session.logout", session)
print(json.dumps({
    "power_state": record["power_state"], "memory": record["memory_static_max"], "time": str(record["snapshot_time"]),
    "disks": len(disks), "statuses": [vhd_status, raw_status, import_status], "vhd": len(vhd), "same": copy == raw,
    "bitmap": len(changed), "error": error, "classes": methods, "tasks": counts["task"],
}))
