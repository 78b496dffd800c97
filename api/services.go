package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"swarm/raftstore"
	"swarm/service/spec"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
)

// serviceBody is what create and update accept: a spec, and what clients are known to send beside it.
type serviceBody struct {
	swarm.ServiceSpec
	// Networks is where clients before API 1.25, and Portainer to this day, name the networks of the task template.
	Networks []swarm.NetworkAttachmentConfig
	// RegistryID is a note of Portainer to itself; its credentials come in a header.
	RegistryID json.RawMessage `json:"registryId"`
}

// findService looks up by id, name or id prefix. A service that is being removed is gone for clients.
func findService(state *raftstore.State, ref string) (*raftstore.Service, error) {
	row, err := state.Services.Find(ref)
	if errdefs.IsNotFound(err) || err == nil && row.Removing {
		return nil, notFound("service %s not found", ref)
	}
	return row, err
}

func (a *API) serviceList(w http.ResponseWriter, r *request) error {
	f, err := r.filters("id", "name", "label", "mode", "runtime")
	if err != nil {
		return err
	}
	state, err := a.view(w, r)
	if err != nil {
		return err
	}
	status := r.flag("status")
	body := a.bodies.take()
	defer a.bodies.give(body)
	body.WriteByte('[')
	for row := range state.Services.All() {
		if row.Removing || !matchService(f, state, row) {
			continue
		}
		if body.Len() > 1 {
			body.WriteByte(',')
		}
		if err := a.appendService(body, state, row, status); err != nil {
			return err
		}
	}
	body.WriteString("]\n")
	writeBody(w, http.StatusOK, body)
	return nil
}

func matchService(f filters, state *raftstore.State, row *raftstore.Service) bool {
	if !f.prefix("id", row.ID) || !f.prefix("name", row.Name) || !f.exact("runtime", string(swarm.RuntimeContainer)) {
		return false
	}
	if len(f["label"]) == 0 && len(f["mode"]) == 0 {
		return true
	}
	s := state.Spec(row.ID, row.SpecVersion)
	return s != nil && f.labels("label", s.Labels) && f.exact("mode", modeName(s.Mode))
}

func modeName(m swarm.ServiceMode) string {
	switch {
	case m.Global != nil:
		return "global"
	case m.ReplicatedJob != nil:
		return "replicated-job"
	case m.GlobalJob != nil:
		return "global-job"
	}
	return "replicated"
}

func (a *API) serviceInspect(w http.ResponseWriter, r *request) error {
	state, err := a.view(w, r)
	if err != nil {
		return err
	}
	row, err := findService(state, r.vars["id"])
	if err != nil {
		return err
	}
	if r.flag("insertDefaults") {
		service := renderService(state, row)
		service.Spec = spec.WithDefaults(service.Spec)
		return writeJSON(w, http.StatusOK, service)
	}
	body := a.bodies.take()
	defer a.bodies.give(body)
	if err := a.appendService(body, state, row, false); err != nil {
		return err
	}
	body.WriteByte('\n')
	writeBody(w, http.StatusOK, body)
	return nil
}

// decodeServiceSpec reads, completes and checks the spec of a create or update.
func (a *API) decodeServiceSpec(r *request) (swarm.ServiceSpec, error) {
	var body serviceBody
	if err := r.decode(&body); err != nil {
		return swarm.ServiceSpec{}, err
	}
	s := body.ServiceSpec
	if len(s.TaskTemplate.Networks) == 0 {
		s.TaskTemplate.Networks = body.Networks
	}
	if modes := s.Mode; modes.Replicated == nil && modes.Global == nil && modes.ReplicatedJob == nil && modes.GlobalJob == nil {
		s.Mode.Replicated = &swarm.ReplicatedService{}
	}
	if s.Mode.Replicated != nil && s.Mode.Replicated.Replicas == nil {
		one := uint64(1)
		s.Mode.Replicated = &swarm.ReplicatedService{Replicas: &one}
	}
	return s, nil
}

func (a *API) serviceCreate(w http.ResponseWriter, r *request) error {
	if _, err := a.manager(); err != nil {
		return err
	}
	s, err := a.decodeServiceSpec(r)
	if err != nil {
		return err
	}
	generated := s.Name == ""
	if generated {
		s.Name = randomName()
	}
	warnings, err := a.prepareSpec(w, r, &s)
	if err != nil {
		return err
	}
	id := raftstore.NewID()
	err = a.update(r.Context(), func(tx *raftstore.Tx) error {
		if generated && nameTaken(tx, s.Name) {
			s.Name = randomName() + "_" + id[:4]
		}
		return createService(tx, id, s)
	})
	if err != nil {
		return err
	}
	a.log.Info("service created", "service", id, "name", s.Name)
	return writeJSON(w, http.StatusCreated, swarm.ServiceCreateResponse{ID: id, Warnings: warnings})
}

// prepareSpec pins the image for clients that do not, then validates.
func (a *API) prepareSpec(w http.ResponseWriter, r *request, s *swarm.ServiceSpec) (warnings []string, err error) {
	if err := spec.Validate(*s); err != nil {
		return nil, err
	}
	if credentials(r.Header.Get(registry.AuthHeader)) {
		warnings = append(warnings, "registry credentials are not handed to nodes yet: each node pulls without a login what no other node holds")
	}
	if r.version.before(apiVersion{1, 30}) && s.TaskTemplate.ContainerSpec != nil {
		if warning := a.pinImage(w, r, s.TaskTemplate.ContainerSpec); warning != "" {
			warnings = append(warnings, warning)
		}
	}
	return warnings, nil
}

func nameTaken(tx *raftstore.Tx, name string) bool {
	found, err := tx.Services.Find(name)
	return err == nil && found.Name == name
}

func createService(tx *raftstore.Tx, id string, s swarm.ServiceSpec) error {
	if nameTaken(tx, s.Name) {
		return errdefs.ErrAlreadyExists.WithMessage(fmt.Sprintf("name conflicts with an existing object: service %s already exists", s.Name))
	}
	now := time.Now().UTC()
	tx.PutService(raftstore.Service{
		Meta: raftstore.Meta{ID: id, CreatedAt: now, UpdatedAt: now},
		Name: s.Name, SpecVersion: 1,
	})
	putSpec(tx, id, 1, s, now)
	return nil
}

func putSpec(tx *raftstore.Tx, serviceID string, version uint64, s swarm.ServiceSpec, now time.Time) {
	tx.PutSpec(raftstore.Spec{
		Meta:      raftstore.Meta{ID: raftstore.SpecID(serviceID, version), CreatedAt: now, UpdatedAt: now},
		ServiceID: serviceID, SpecVersion: version, Spec: s,
	})
}

func (a *API) serviceUpdate(w http.ResponseWriter, r *request) error {
	if _, err := a.manager(); err != nil {
		return err
	}
	version, err := r.objectVersion("service")
	if err != nil {
		return err
	}
	query := r.URL.Query()
	rollback := query.Get("rollback") == "previous"
	if v := query.Get("rollback"); v != "" && v != "none" && v != "previous" {
		return invalid("unrecognized rollback option %s: use previous or none", v)
	}
	switch source := query.Get("registryAuthFrom"); swarm.RegistryAuthSource(source) {
	case "", swarm.RegistryAuthFromSpec, swarm.RegistryAuthFromPreviousSpec:
	default:
		return invalid("unsupported registryAuthFrom value %q: use spec or previous-spec", source)
	}
	s, err := a.decodeServiceSpec(r)
	if err != nil {
		return err
	}
	var warnings []string
	if !rollback {
		if warnings, err = a.prepareSpec(w, r, &s); err != nil {
			return err
		}
	}
	var id string
	err = a.update(r.Context(), func(tx *raftstore.Tx) error {
		row, err := findService(&tx.State, r.vars["id"])
		if err != nil {
			return err
		}
		id = row.ID
		if row.Version != version {
			return errOutdated
		}
		return updateService(tx, row, s, rollback)
	})
	if err != nil {
		return err
	}
	a.log.Info("service updated", "service", id, "rollback", rollback)
	return writeJSON(w, http.StatusOK, swarm.ServiceUpdateResponse{Warnings: warnings})
}

// updateService writes the next version of a service's spec. A rollback swaps the current and the previous one, so a second one
// returns. The orchestrator deletes versions that nothing can return to.
func updateService(tx *raftstore.Tx, row *raftstore.Service, s swarm.ServiceSpec, rollback bool) error {
	current := tx.Spec(row.ID, row.SpecVersion)
	if current == nil {
		return fmt.Errorf("service %s has no spec at version %d", row.ID, row.SpecVersion)
	}
	now := time.Now().UTC()
	next := *row
	next.UpdateStatus = nil
	if rollback {
		previous := tx.Spec(row.ID, row.PreviousSpecVersion)
		if row.PreviousSpecVersion == 0 || previous == nil {
			return refused("service %s does not have a previous spec", row.Name)
		}
		s = *previous
		next.UpdateStatus = &swarm.UpdateStatus{State: swarm.UpdateStateRollbackStarted, Message: "manually requested rollback", StartedAt: &now}
	} else if err := checkUpdate(*current, s); err != nil {
		return err
	}
	next.PreviousSpecVersion = row.SpecVersion
	next.SpecVersion = row.SpecVersion + 1
	next.UpdatedAt = now
	tx.PutService(next)
	putSpec(tx, row.ID, next.SpecVersion, s, now)
	return nil
}

// checkUpdate refuses what an update cannot change.
func checkUpdate(current, s swarm.ServiceSpec) error {
	if s.Name != current.Name {
		return errdefs.ErrNotImplemented.WithMessage("renaming services is not supported")
	}
	if modeName(s.Mode) != modeName(current.Mode) {
		return errdefs.ErrNotImplemented.WithMessage("service mode change is not allowed")
	}
	return nil
}

// serviceRemove marks a service; the orchestrator shuts its tasks down and deletes the rows. Its name is free at once.
func (a *API) serviceRemove(w http.ResponseWriter, r *request) error {
	var id string
	err := a.update(r.Context(), func(tx *raftstore.Tx) error {
		row, err := findService(&tx.State, r.vars["id"])
		if err != nil {
			return err
		}
		id = row.ID
		next := *row
		next.Removing = true
		next.Name = row.ID
		next.UpdatedAt = time.Now().UTC()
		tx.PutService(next)
		return nil
	})
	if err != nil {
		return err
	}
	a.log.Info("service removed", "service", id)
	w.WriteHeader(http.StatusOK)
	return nil
}

// credentials says whether an X-Registry-Auth header carries any. Clients send an encoded {} for none.
func credentials(header string) bool {
	if header == "" {
		return false
	}
	config, err := authconfig.Decode(header)
	return err != nil || config.Username != "" || config.Auth != "" || config.IdentityToken != "" || config.RegistryToken != ""
}

// pinImage adds the digest to an image reference, as the daemon does for clients before API 1.30; it returns a warning when it cannot.
func (a *API) pinImage(w http.ResponseWriter, r *request, c *swarm.ContainerSpec) (warning string) {
	pinned, err := a.pinned(w, r, c.Image)
	if err != nil {
		a.log.Warn("image not pinned", "image", c.Image, "err", err)
		return fmt.Sprintf("image %s could not be accessed on a registry to record\nits digest. Each node will access %s independently,\npossibly leading to different nodes running different\nversions of the image.\n", c.Image, c.Image)
	}
	c.Image = pinned
	return ""
}
