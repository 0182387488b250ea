package xapisim

import (
	_ "embed"
	"strings"
	"sync"
)

// User is an account in addition to Config.User, which is root and may do
// everything.
type User struct {
	Name, Password string
	Role           string // one of Roles
}

// Roles are the roles of the server; each has all permissions of the ones after
// it.
var Roles = []string{"pool-admin", "pool-operator", "vm-power-admin", "vm-admin", "vm-operator", "read-only"}

//go:embed roles.txt
var rolesText string

// leastRoles returns for each call the index in Roles of the least privileged
// role that may make it. Any role may make a call that is absent.
var leastRoles = sync.OnceValue(func() map[string]int {
	out := map[string]int{
		"http/get_export": 3, "http/put_import": 3, "http/get_export_metadata": 3, "http/put_import_metadata": 3,
		"http/get_export_raw_vdi": 3, "http/put_import_raw_vdi": 3, "http/get_pool_xml_db_sync": 0,
	}
	for _, l := range strings.Split(rolesText, "\n") {
		f := strings.Fields(l)
		if len(f) < 3 || f[0] == "#" {
			continue
		}
		for _, name := range f[2:] {
			out[f[0]+"."+name] = rank(f[1])
		}
	}
	return out
})

// rank returns a role's index in Roles; the rank of an empty role precedes all
// of them.
func rank(role string) int {
	for i, r := range Roles {
		if r == role {
			return i
		}
	}
	return -1
}

// allow returns an error if a session's role does not permit an action (xen-api
// ocaml/xapi/rbac.ml). Pool.mu must be held.
func (p *Pool) allow(session *object, action string) error {
	role, limited := p.roles[session.ref]
	least, ok := leastRoles()[action]
	if !limited || !ok || rank(role) <= least {
		return nil
	}
	return fail("RBAC_PERMISSION_DENIED", strings.ToLower(action),
		"No permission in user session. (Roles with this permission: "+strings.Join(Roles[:least+1], ", ")+")")
}

// admit finds the session of a bulk request, and reports whether it was opened
// for this request only; page is the answer if there is no session, or if its
// role is not sufficient. Pool.mu must be held.
func (c *conn) admit(r *httpRequest, action string) (session *object, temporary bool, page string) {
	if session, temporary = c.authorise(r); session == nil {
		return nil, false, unauthorised(action)
	}
	return session, temporary, c.refuseRole(r, session, action)
}

// refuseRole returns the page for a session whose role is not sufficient for a
// bulk request, and fails its task; the page is empty if the role is
// sufficient. Pool.mu must be held.
func (c *conn) refuseRole(r *httpRequest, session *object, action string) string {
	err := c.pool.allow(session, "http/"+action)
	if err == nil {
		return ""
	}
	if t := c.pool.db.find("task", r.credential("task_id")); t != nil {
		c.pool.complete(t.ref, "", asError(err))
	}
	return pageText("403 Forbidden", "403 forbidden", "Access to the requested resource is forbidden.")
}
