{{/*
The "restricted" Pod Security Standard, with a read-only root on top. Fixed: no value weakens it.
*/}}

{{/*
Fixed, or Namespace where the platform allots the IDs: OpenShift's restricted-v2 refuses others.
*/}}
{{- define "llmservice-operator.userIds" -}}
{{- $isOpenShift := .Capabilities.APIVersions.Has "security.openshift.io/v1" -}}
{{- eq .Values.userIds "Auto" | ternary (ternary "Namespace" "Fixed" $isOpenShift) .Values.userIds -}}
{{- end -}}

{{- define "llmservice-operator.podSecurityContext" -}}
runAsNonRoot: true
{{- if eq (include "llmservice-operator.userIds" .) "Fixed" }}
runAsUser: 10001
runAsGroup: 10001
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "llmservice-operator.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}
