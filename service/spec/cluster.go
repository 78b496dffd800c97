package spec

import (
	"time"

	"github.com/moby/moby/api/types/swarm"
)

// Bounds of cluster settings.
const (
	heartbeatMin  = time.Second
	heartbeatMax  = time.Hour
	certExpiryMin = time.Hour
)

// ValidateNode refuses node settings that name no known role or availability.
func ValidateNode(s swarm.NodeSpec) error {
	switch s.Role {
	case swarm.NodeRoleWorker, swarm.NodeRoleManager:
	default:
		return invalid("invalid Role: %q; use worker or manager", s.Role)
	}
	switch s.Availability {
	case swarm.NodeAvailabilityActive, swarm.NodeAvailabilityPause, swarm.NodeAvailabilityDrain:
	default:
		return invalid("invalid Availability: %q; use active, pause or drain", s.Availability)
	}
	for label := range s.Labels {
		if label == "" {
			return invalid("invalid node label: its name is empty")
		}
	}
	return nil
}

// ValidateCluster refuses cluster settings that cannot work or that nothing acts on yet.
func ValidateCluster(s swarm.Spec) error {
	switch {
	case s.Name != "" && s.Name != "default":
		return invalid("Swarm Spec name must be \"default\" or empty, not %q", s.Name)
	case s.Dispatcher.HeartbeatPeriod < 0:
		return invalid("heartbeat time period cannot be a negative duration")
	case s.Dispatcher.HeartbeatPeriod != 0 && (s.Dispatcher.HeartbeatPeriod < heartbeatMin || s.Dispatcher.HeartbeatPeriod > heartbeatMax):
		return invalid("dispatcher heartbeat %v is out of range: use %v to %v", s.Dispatcher.HeartbeatPeriod, heartbeatMin, heartbeatMax)
	case s.CAConfig.NodeCertExpiry != 0 && s.CAConfig.NodeCertExpiry < certExpiryMin:
		return invalid("minimum certificate expiry time is: %v", certExpiryMin)
	case len(s.CAConfig.ExternalCAs) > 0 || s.CAConfig.SigningCACert != "" || s.CAConfig.SigningCAKey != "" || s.CAConfig.ForceRotate != 0:
		return missing("rotating the root certificate and external certificate authorities are not there yet: leave them out")
	case s.EncryptionConfig.AutoLockManagers:
		return missing("autolock is not there yet: leave --autolock out")
	case s.TaskDefaults.LogDriver != nil:
		return missing("a default log driver is not there yet: give --log-driver with each service")
	}
	return nil
}
