package images

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/image"
)

// imageDigestLabel is what agent/containerd writes to the record of a container.
const imageDigestLabel = "swarm.image.digest"

// Remove takes a name from an image, and the image itself with its last name; by id all names at once.
// Conflict with docker's texts when a container uses it.
func (i *Images) Remove(ctx context.Context, ref string, force bool) ([]image.DeleteResponse, error) {
	found, err := i.find(ctx, ref)
	if err != nil {
		return nil, err
	}
	doomed := found
	if named, err := normalize(ref); err == nil && recordName(named) == found[0].Name {
		doomed = sameName(found, named)
		err = i.refuseName(ctx, ref, found[0], len(doomed) == len(found), force)
		if err != nil {
			return nil, err
		}
	} else if err := i.refuseID(ctx, found, force); err != nil {
		return nil, err
	}
	return i.delete(ctx, doomed, len(doomed) == len(found))
}

// sameName is the record that was named, with pinned names of the same repository once no tag of it is left.
func sameName(found []images.Image, named reference.Named) []images.Image {
	doomed, rest := found[:1:1], found[1:]
	var pins []images.Image
	for _, r := range rest {
		other, err := reference.ParseNormalizedNamed(r.Name)
		if err != nil || other.Name() != named.Name() {
			continue
		}
		if pinned(other) == "" {
			return doomed
		}
		pins = append(pins, r)
	}
	return append(doomed, pins...)
}

func (i *Images) delete(ctx context.Context, doomed []images.Image, last bool) ([]image.DeleteResponse, error) {
	defer i.signal()
	var result []image.DeleteResponse
	for at, r := range doomed {
		var opts []images.DeleteOpt
		if last && at == len(doomed)-1 {
			opts = append(opts, images.SynchronousDelete()) // its space is free when we return
		}
		i.forget(r.Target.Digest)
		if err := i.client.ImageService().Delete(ctx, r.Name, opts...); err != nil && !errdefs.IsNotFound(err) {
			return result, fmt.Errorf("remove image %s: %w", familiar(r.Name), err)
		}
		if !isUnnamed(r.Name) {
			result = append(result, image.DeleteResponse{Untagged: familiar(r.Name)})
		}
	}
	if last {
		result = append(result, image.DeleteResponse{Deleted: doomed[0].Target.Digest.String()})
	}
	return result, nil
}

// refuseName protects the last name of an image that a container uses.
func (i *Images) refuseName(ctx context.Context, ref string, record images.Image, last, force bool) error {
	if force || !last {
		return nil
	}
	id, _, err := i.user(ctx, record)
	if err != nil || id == "" {
		return err
	}
	return conflict("conflict: unable to remove repository reference %q (must force) - container %s is using its referenced image %s",
		ref, short(id), short(record.Target.Digest.Encoded()))
}

// refuseID protects an image with names in several repositories, or that a container uses.
func (i *Images) refuseID(ctx context.Context, found []images.Image, force bool) error {
	hex := short(found[0].Target.Digest.Encoded())
	repositories := make(map[string]bool)
	for _, r := range found {
		name, _, _ := strings.Cut(r.Name, "@")
		if named, err := reference.ParseNormalizedNamed(name); err == nil {
			repositories[named.Name()] = true
		}
	}
	if len(repositories) > 1 && !force {
		return conflict("conflict: unable to delete %s (must be forced) - image is referenced in multiple repositories", hex)
	}
	id, running, err := i.user(ctx, found[0])
	switch {
	case err != nil || id == "":
		return err
	case running:
		return conflict("conflict: unable to delete %s (cannot be forced) - image is being used by running container %s", hex, short(id))
	case !force:
		return conflict("conflict: unable to delete %s (must be forced) - image is being used by stopped container %s", hex, short(id))
	}
	return nil
}

// user is a container that uses an image, a running one if there is any; "" when none does.
func (i *Images) user(ctx context.Context, record images.Image) (id string, running bool, err error) {
	filter := `labels."` + imageDigestLabel + `"==` + strconv.Quote(record.Target.Digest.String())
	containers, err := i.client.ContainerService().List(ctx, filter)
	if err != nil || len(containers) == 0 {
		return "", false, err
	}
	for _, c := range containers {
		if _, err := i.client.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: c.ID}); err == nil {
			return c.ID, true, nil
		}
	}
	return containers[0].ID, false, nil
}

func short(hex string) string { return hex[:min(12, len(hex))] }
