package xapisim

import (
	"slices"
	"time"
)

// session returns the session of a reference.
func (p *Pool) session(ref string) (*object, error) {
	s := p.db.find("session", ref)
	if s == nil {
		return nil, fail("SESSION_INVALID", ref)
	}
	if t, err := time.Parse(dateForm, s.str("last_active")); err == nil && time.Since(t) > 10*time.Minute {
		p.db.put(s, "last_active", dateOf(p.now()))
	}
	return s, nil
}

// login opens a session.
func (p *Pool) login(user, password, originator string) (*object, error) {
	role, ok := "", user == p.cfg.User && password == p.cfg.Password
	for _, u := range p.cfg.Users {
		if user == u.Name && password == u.Password {
			role, ok = u.Role, true
		}
	}
	if !ok {
		return nil, fail("SESSION_AUTHENTICATION_FAILED", user, "Authentication failure")
	}
	now := dateOf(p.now())
	s := p.db.create("session", map[string]any{
		"this_host": p.hosts[0].ref, "this_user": nullRef, "last_active": now, "validation_time": now,
		"is_local_superuser": role == "", "auth_user_name": user, "originator": originator,
		"subject": nullRef, "parent": nullRef,
	})
	p.db.opened = append(p.db.opened, s.ref)
	if role != "" {
		p.roles[s.ref] = role
	}
	return s, nil
}

// Sessions returns the references of all sessions since the start, also of those
// that have ended, for tests that search outputs for them.
func (p *Pool) Sessions() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.db.opened)
}

func (p *Pool) sessionCalls() map[string]handler {
	return map[string]handler{
		"session.login_with_password": p.sessionLoginWithPassword,
		"session.logout":              p.sessionLogout,
		"session.local_logout":        p.sessionLocalLogout,
	}
}

// sessionLoginWithPassword implements session.login_with_password.
func (p *Pool) sessionLoginWithPassword(c *call) (any, error) {
	s, err := p.login(c.str(0), c.str(1), c.str(3))
	if err != nil {
		c.wait(p.scaled(p.cfg.LoginDelay))
		return nil, err
	}
	return s.ref, nil
}

// sessionLogout implements session.logout.
func (p *Pool) sessionLogout(c *call) (any, error) {
	p.db.destroy(c.session)
	return void, nil
}

// sessionLocalLogout implements session.local_logout.
func (p *Pool) sessionLocalLogout(c *call) (any, error) {
	p.db.destroy(c.session)
	return void, nil
}
